"""Where the names of a product still stand: in files of any kind, and in the statistics of Delta's logs.

Delta's log keeps the least and the greatest value of each column of every data file. A statistic is optional; one that is
forgotten costs a reader nothing but a look into the file.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from serve.index.manifest import write_durably

CHUNK_BYTES = 1 << 24
NUMBERS = (".f16", ".f32", ".sq8", ".u8", ".mih", ".faiss", ".safetensors")


def traces(roots: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Every file below `roots` that holds one of `names`, not as a part of a longer word."""
    return sorted({path for root in roots for path in root.rglob("*") if path.is_file() and holds(path, names)})


def holds(path: Path, names: Sequence[str]) -> bool:
    """Tables show it in their texts, other files in their bytes; files of numbers alone have no texts."""
    if path.suffix in NUMBERS:
        return False
    if path.suffix == ".parquet":
        return any(stands_in(batch, names) for batch in pq.ParquetFile(path).iter_batches())
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            return any(stands_in(reader.get_batch(number), names) for number in range(reader.num_record_batches))
    needles = [name.encode() for name in names]
    tail, longest = b"", max(len(needle) for needle in needles)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            if any(stands_alone(tail + chunk, needle) for needle in needles):
                return True
            tail = chunk[-longest - 1 :]
    return False


def stands_alone(data: bytes, needle: bytes) -> bool:
    """Whether `needle` is there and not a part of a longer name: sku-1 is not in sku-10."""
    place = data.find(needle)
    while place >= 0:
        before, after = data[place - 1 : place] if place else b"", data[place + len(needle) : place + len(needle) + 1]
        if not (before.isalnum() or after.isalnum()):
            return True
        place = data.find(needle, place + 1)
    return False


def stands_in(batch: pa.RecordBatch, names: Sequence[str]) -> bool:
    """Whether a text anywhere in the batch holds one of `names`."""
    return any(stands_alone(text.encode(), name.encode()) for text in texts(batch.to_pylist()) for name in names)


def texts(value: Any) -> Iterator[str]:
    """Every text in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts(part)


def redact_log(table: Path, names: Sequence[str]) -> int:
    """Drops what a table's log says of `names`: statistics of files, predicates of commits, checkpoints; how many files changed.

    Raises ValueError where a checkpoint names it and the log before it is gone: then nothing else knows the table's files.
    """
    log, changed = table / "_delta_log", 0
    for path in sorted(log.glob("*")):
        if not path.is_file() or not holds(path, names):
            continue
        if path.suffix == ".json" and path.stem.isdigit():
            lines = [json.dumps(redacted(json.loads(line), names)) for line in path.read_text().splitlines()]
            write_durably(path, ("\n".join(lines) + "\n").encode())
        elif path.suffix == ".crc" or (log / f"{0:020d}.json").is_file():  # checksums and checkpoints can be done without
            path.unlink()
            (log / "_last_checkpoint").unlink(missing_ok=True)
        else:
            raise ValueError(f"{path} names it, and the log before it is gone")
        changed += 1
    return changed


def redacted(action: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An entry of the log without the statistics, tags and predicates that hold a name."""
    return {
        kind: {
            key: value
            for key, value in body.items()
            if key not in ("stats", "tags", "operationParameters")
            or not any(stands_alone(json.dumps(value).encode(), name.encode()) for name in names)
        }
        if isinstance(body, dict)
        else body
        for kind, body in action.items()
    }
