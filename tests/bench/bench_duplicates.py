"""How group_duplicates grows with the hashes, and whether it finds every planted pair.

    python -m tests.bench.bench_duplicates [--hashes 1000000 3000000 10000000] [--folder DIR] [--out FILE]

Random 256-bit hashes, with a near copy of every hundredth, 1 to 31 bits away: an image of each. `planted_recall` is the share of
copies that end in the group of their original; `growth` is the exponent of the fit seconds ~ hashes ** growth: 1 is linear.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from jobs.config import Config
from jobs.group_duplicates import group
from jobs.spark.session import stop_spark
from jobs.tables import FEATURES
from tests.bench.record import growth, record
from tests.parts import write_conf

PLANTED_EVERY, MAX_DISTANCE = 100, 31
CHUNK_ROWS = 250_000
WARM_UP = 10_000  # hashes grouped before the first that count


def planted(num: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(N, 32) uint8 hashes, of which the last are copies of the first, and how many bits each copy is away."""
    num_copies = num // PLANTED_EVERY
    hashes_N32 = random.integers(0, 256, (num, 32), dtype=np.uint8)
    distances_C = random.integers(1, MAX_DISTANCE + 1, num_copies)
    bits_C256 = np.unpackbits(hashes_N32[:num_copies], axis=1)
    places_C256 = random.random((num_copies, 256)).argsort(axis=1)
    flips_C256 = (places_C256 < distances_C[:, None]).astype(np.uint8)
    hashes_N32[num - num_copies :] = np.packbits(bits_C256 ^ flips_C256, axis=1)
    return hashes_N32, distances_C


def write_features(path: Path, hashes_N32: np.ndarray) -> None:
    """A table as embed_images writes it: crop 0 of an image for each hash; image_id is the row's number."""
    for first in range(0, len(hashes_N32), CHUNK_ROWS):
        size = len(hashes_N32[first : first + CHUNK_ROWS])
        ones = {
            "crop": 0,
            "x0": 0.0,
            "y0": 0.0,
            "x1": 9.0,
            "y1": 9.0,
            "width": 9,
            "height": 9,
            "score": 1.0,
            "hash_quality": 90.0,
        }
        columns: dict[str, pa.Array] = {
            name: pa.array(np.full(size, value), FEATURES.field(name).type) for name, value in ones.items()
        }
        columns["image_id"] = pa.array([f"{number:010d}" for number in range(first, first + size)])
        columns["bundle_digest"] = pa.array(np.full(size, "bench"), pa.string())
        columns["embedding"] = pa.array([b"\0\0"] * size, pa.binary())
        columns["hash"] = pa.array([hash_.tobytes() for hash_ in hashes_N32[first : first + size]], pa.binary())
        table = pa.table({field.name: columns.get(field.name, pa.nulls(size, field.type)) for field in FEATURES}, schema=FEATURES)
        write_deltalake(str(path), table, mode="append")


def measure(sizes: list[int], folder: Path) -> dict[str, Any]:
    """Seconds and recall by number of hashes, each in a Spark session of its own, in a JVM that is warm."""
    found = []
    for num in [WARM_UP, *sizes]:
        root = folder / str(num)
        root.mkdir()
        spark = {"master": "local[2]", "driver_memory": "8g", "shuffle_partitions": max(2, num // 100_000)}
        spark |= {"settings": {"spark.driver.extraJavaOptions": "-XX:+UseG1GC", "spark.local.dir": str(root / "spark")}}
        config = Config.load(write_conf(root, {"spark": spark}))
        hashes_N32, distances_C = planted(num, np.random.default_rng(11))
        write_features(Path(config.store.tables) / "features", hashes_N32)
        start = time.perf_counter()
        result = group(config, "bench")
        seconds = time.perf_counter() - start
        stop_spark()
        rows = DeltaTable(f"{config.store.tables}/duplicates").to_pyarrow_table(columns=["image_id", "group_id"])
        group_of = dict(zip(rows["image_id"].to_pylist(), rows["group_id"].to_pylist(), strict=True))
        num_copies = len(distances_C)
        both = [(f"{row:010d}", f"{num - num_copies + row:010d}") for row in range(num_copies)]
        hits = [a in group_of and group_of[a] == group_of.get(b) for a, b in both]
        row = {"hashes": num, "s": round(seconds, 1), "hashes_per_s": round(num / seconds), "groups": result.groups}
        found.append(row | {"planted": num_copies, "planted_recall": round(sum(hits) / num_copies, 6)})
        sys.stdout.write(f"{found[-1]}\n")
        sys.stdout.flush()
        shutil.rmtree(root)
    del found[0]
    figures: dict[str, Any] = {"sizes": found}
    if len(found) > 1:
        figures["growth"] = growth(sizes, [row["s"] for row in found])
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored: the hashes are random")
    parser.add_argument("--hashes", type=int, nargs="+", default=[300_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the tables and Spark's files lie meanwhile (default: a temporary one)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-duplicates-", dir=args.folder) as folder:
        path = record("duplicates", measure(args.hashes, Path(folder)), ("pyspark", "delta-spark", "numpy"), args.out)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
