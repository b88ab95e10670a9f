"""Hash look-up beside FAISS, and decode + hash beside Pillow + imagehash.phash: one core, queries and photos a CPU second.

    python -m tests.bench.bench_hashes [--num 1000000] [--peers .venv-bench/bin/python]

Look-up: random hashes, in every query a stored hash planted 0 to 31 bits away; a photo asks with its eight turns and
mirrorings at once. All sides search the same queries, in turns.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from PIL import Image

from serve.index.hash_table import TABLES_FILE, HashTable, write_tables
from serve.vision.hash import fingerprint_bytes
from serve.vision.spec import DecodeLimits
from tests.bench.record import record

RADIUS = 31
ROUNDS = 3
PEER = """
import io, sys, time
from PIL import Image
import imagehash
data = open(sys.argv[1], "rb").read()
for _ in range(20): imagehash.phash(Image.open(io.BytesIO(data)))
start = time.process_time()
for _ in range(300): imagehash.phash(Image.open(io.BytesIO(data)))
print(300 / (time.process_time() - start))
"""


def rate(call: Callable[[int], Any], num: int) -> float:
    """Calls a CPU second."""
    start = time.process_time()
    for i in range(num):
        call(i)
    return num / (time.process_time() - start)


def lookups(num: int) -> dict[str, Any]:
    """Photos (eight variants each) a CPU second, and the share of planted pairs that each side finds."""
    random = np.random.default_rng(0)
    stored = random.integers(0, 256, (num, 32), dtype=np.uint8)
    queries = random.integers(0, 256, (50, 8, 32), dtype=np.uint8)
    planted = []
    for i in range(len(queries)):
        row = int(random.integers(num))
        bits = np.unpackbits(stored[row])
        bits[random.choice(256, int(random.integers(32)), replace=False)] ^= 1
        queries[i, i % 8] = np.packbits(bits)
        planted.append((row, i % 8))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        write_tables(Path(folder), stored)
        build_s = time.process_time() - start
        bytes_a_hash = 32 + (Path(folder) / TABLES_FILE).stat().st_size / num
        table = HashTable.open(Path(folder), stored)
        flat = faiss.IndexBinaryFlat(256)
        flat.add(stored)
        hashed = faiss.IndexBinaryMultiHash(256, 16, 16)
        hashed.nflip = 1
        hashed.add(stored)
        rates: dict[str, list[float]] = {"ours": [], "faiss_flat": [], "faiss_multi_hash": []}
        for _ in range(ROUNDS):
            rates["ours"].append(rate(lambda i: table.lookup(queries[i], RADIUS), len(queries)))
            rates["faiss_flat"].append(rate(lambda i: flat.range_search(queries[i], RADIUS + 1), 5))
            rates["faiss_multi_hash"].append(rate(lambda i: hashed.range_search(queries[i], RADIUS + 1), 5))
        found = [set(zip(*(part.tolist() for part in table.lookup(q, RADIUS)[:2]), strict=True)) for q in queries]
    figures = {f"{name}_photos_per_cpu_s": float(np.median(all_rates)) for name, all_rates in rates.items()}
    return figures | {
        "hashes": num,
        "radius": RADIUS,
        "against_faiss_flat": figures["ours_photos_per_cpu_s"] / figures["faiss_flat_photos_per_cpu_s"],
        "planted_found_frac": float(np.mean([pair in hits for pair, hits in zip(planted, found, strict=True)])),
        "bytes_a_hash": bytes_a_hash,
        "build_cpu_s": build_s,
    }


def decoding(peers: str) -> dict[str, float]:
    """Photos a CPU second: ours from bytes to all eight hashes and colours; Pillow + imagehash to one 64-bit hash."""
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        data = buffer.getvalue()
    limits = DecodeLimits()
    fingerprint_bytes(data, limits)
    ours = rate(lambda _: fingerprint_bytes(data, limits), 300)
    with tempfile.NamedTemporaryFile(suffix=".jpg") as photo:
        photo.write(data)
        photo.flush()
        theirs = float(subprocess.run([peers, "-c", PEER, photo.name], capture_output=True, text=True, check=True).stdout)
    return {"ours_per_cpu_s": ours, "pillow_imagehash_per_cpu_s": theirs, "against_pillow_imagehash": ours / theirs}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored")
    parser.add_argument("--num", type=int, default=1_000_000)
    parser.add_argument("--peers", default=".venv-bench/bin/python")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    figures: dict[str, Any] = {"lookup": lookups(args.num)}
    if Path(args.peers).exists():
        figures["decode_and_hash"] = decoding(args.peers)
    path = record("hashes", figures, ("faiss-gpu", "numpy", "pillow"))
    sys.stdout.write(f"{path}\n{json.dumps(figures, indent=1)}\n")


if __name__ == "__main__":
    main()
