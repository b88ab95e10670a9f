"""How far the predictions of plan_capacity are from real shards at three sizes: bytes, build seconds, time of one search.

python -m tests.bench.bench_capacity [--calibration 100000] [--sizes 200000 400000 1000000]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from jobs.capacity.calibration import CANDIDATES, NPROBE, NUM_QUERIES, K, clustered, measure_rates, query_ms
from jobs.capacity.model import Rates, shard_cost
from serve.index.manifest import PartitionSpec
from serve.index.partition import Partition
from serve.index.plan import plan_index
from serve.index.records import RECORD_FILES
from serve.index.shard import Shard
from serve.index.spec import IndexConfig
from serve.index.template import train_template
from tests.bench.index_shard import write_bench_shard
from tests.bench.record import record

DIM = 256


def record_bytes_of(folder: Path, num: int) -> float:
    """Bytes a row in the .arrow files."""
    return sum((folder / name).stat().st_size for name in RECORD_FILES) / num


def compare(num: int, rates: Rates, index: IndexConfig, record_bytes: float) -> dict[str, Any]:
    """Predicted against real, of one shard."""
    cost = shard_cost(num, num, DIM, index, rates, record_bytes)
    vectors = clustered(num, DIM)
    plan = plan_index(num, DIM, index)
    start = time.process_time()
    template = train_template(plan, vectors[: plan.train_rows], index.seed)
    train_s = time.process_time() - start
    filled = faiss.deserialize_index(np.frombuffer(template, np.uint8))
    start = time.process_time()
    filled.add(vectors)
    build_s = train_s + time.process_time() - start
    del filled
    with tempfile.TemporaryDirectory() as folder:
        write_bench_shard(Path(folder), vectors.astype(np.float16), template, plan.vectors)
        disk = sum(file.stat().st_size for file in Path(folder).iterdir())
        spec = PartitionSpec(
            factory=plan.factory, vectors=plan.vectors, nprobe=NPROBE, refine_factor=CANDIDATES // K, metric="cosine"
        )
        index_bytes = (Path(folder) / "index.faiss").stat().st_size
        partition = Partition([Shard.open(Path(folder), spec, DIM)], spec)
        search_ms = query_ms(lambda query: partition.search(query, K), vectors[:NUM_QUERIES])
    real = {"disk_bytes": disk, "ram_bytes": index_bytes, "build_cpu_s": build_s, "search_ms": search_ms}
    predicted = {
        "disk_bytes": cost.total_disk_bytes,
        "ram_bytes": cost.ram_bytes,
        "build_cpu_s": cost.build_cpu_s,
        "search_ms": cost.search_ms,
    }
    return {name: {"predicted": predicted[name], "real": real[name], "ratio": predicted[name] / real[name]} for name in real}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored")
    parser.add_argument("--calibration", type=int, default=100_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200_000, 400_000, 1_000_000])
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    index = IndexConfig()
    rates = measure_rates(args.calibration, DIM, index)
    with tempfile.TemporaryDirectory() as folder:
        write_bench_shard(Path(folder), clustered(5_000, DIM).astype(np.float16), None, "fp16")
        record_bytes = record_bytes_of(Path(folder), 5_000)
    sizes = {str(num): compare(num, rates, index, record_bytes) for num in args.sizes}
    figures = {"calibration_rows": args.calibration, "sizes": sizes}
    path = record("capacity", figures, ("faiss-gpu", "numpy"))
    sys.stdout.write(f"{path}\n{json.dumps(figures, indent=1)}\n")


if __name__ == "__main__":
    main()
