"""One other library on the shared vectors, in the benchmark's own environment (requirements-bench.lock).

    python tests/bench/index_peers.py SYSTEM FOLDER THREADS      prints one JSON object

Needs nothing of this project, so that its environment stays apart. A rate is queries a CPU second with one thread, queries a
wall-clock second with more.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

K = 10
TARGETS = (0.8, 0.9, 0.95, 0.98)
BATCH = 100
Search = Callable[[np.ndarray, int], np.ndarray]  # (queries, effort) -> (Q, K) rows


def hnswlib(vectors: np.ndarray, folder: Path, threads: int) -> tuple[Search, list[int], Path]:
    """Graph of full-precision vectors."""
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), ef_construction=100, M=16)
    index.set_num_threads(threads)
    index.add_items(vectors)
    index.save_index(str(folder / "index"))

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        index.set_ef(effort)
        return np.asarray(index.knn_query(queries, K)[0])

    return search, [16, 32, 64, 128, 256, 512, 1024, 2048], folder / "index"


def usearch(vectors: np.ndarray, folder: Path, threads: int) -> tuple[Search, list[int], Path]:
    """Graph of int8 vectors."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="cos", dtype="i8", connectivity=16, expansion_add=100)
    index.add(np.arange(len(vectors)), vectors, threads=threads)
    index.save(str(folder / "index"))

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        index.expansion_search = effort
        return np.asarray(index.search(queries, K, threads=threads).keys).reshape(len(queries), K)

    return search, [16, 32, 64, 128, 256, 512, 1024, 2048], folder / "index"


def scann(vectors: np.ndarray, folder: Path, threads: int) -> tuple[Search, list[int], Path]:
    """Tree, anisotropic 4-bit codes, exact re-scoring."""
    import scann

    leaves = int(2 * np.sqrt(len(vectors)))
    builder = scann.scann_ops_pybind.builder(vectors, K, "dot_product").set_n_training_threads(threads)
    builder = builder.tree(leaves, 100, training_sample_size=min(len(vectors), 200_000))
    index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
    index.serialize(str(folder))

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        one = index.search_batched if threads == 1 else index.search_batched_parallel
        return np.asarray(one(queries, leaves_to_search=effort, pre_reorder_num_neighbors=100)[0])

    return search, [4, 8, 16, 32, 64, 128, 256, 512], folder


def lancedb(vectors: np.ndarray, folder: Path, threads: int) -> tuple[Search, list[int], Path]:
    """IVF-PQ on disk, re-scored."""
    import lancedb
    import pyarrow as pa

    dim = vectors.shape[1]

    def batches() -> Any:
        for start in range(0, len(vectors), 50_000):
            part = vectors[start : start + 50_000]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), dim)
            yield pa.record_batch({"id": np.arange(start, start + len(part)), "vector": flat})

    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
    table = lancedb.connect(str(folder)).create_table("t", pa.RecordBatchReader.from_batches(schema, batches()))
    partitions = int(np.sqrt(len(vectors)))
    table.create_index(metric="dot", num_partitions=partitions, num_sub_vectors=dim // 4, vector_column_name="vector")

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        found = [
            table.search(q).distance_type("dot").nprobes(effort).refine_factor(10).limit(K).select(["id"]).to_arrow()["id"]
            for q in queries
        ]
        return np.array([ids.to_numpy()[:K] for ids in found])

    return search, [4, 8, 16, 32, 64, 128, 256, 512], folder


def milvus(vectors: np.ndarray, folder: Path, threads: int) -> tuple[Search, list[int], Path]:
    """milvus-lite, its only index for vectors of this kind."""
    from pymilvus import MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    client.create_collection("t", dimension=vectors.shape[1], metric_type="IP", auto_id=False)
    for start in range(0, len(vectors), 2000):
        part = vectors[start : start + 2000]
        client.insert("t", [{"id": start + i, "vector": row} for i, row in enumerate(part)])

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        found = client.search("t", data=list(queries), limit=K)
        return np.array([[hit["id"] for hit in hits] for hits in found])

    return search, [1], folder


SYSTEMS = {"hnswlib": hnswlib, "usearch": usearch, "scann": scann, "lancedb": lancedb, "milvus": milvus}


def size_of(path: Path) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def measure(search: Search, efforts: list[int], queries: np.ndarray, truth: np.ndarray, threads: int) -> list[dict[str, Any]]:
    """One point an effort, until the highest target is passed."""
    clock = time.process_time if threads == 1 else time.perf_counter
    points = []
    for effort in efforts:
        search(queries[:20], effort)
        start = clock()
        found = np.concatenate([search(queries[i : i + BATCH], effort) for i in range(0, len(queries), BATCH)])
        seconds = clock() - start
        share = float(np.mean([len(set(f) & set(t[:K])) / K for f, t in zip(found.tolist(), truth.tolist(), strict=True)]))
        single_ms = []
        for query in queries[:: max(len(queries) // 100, 1)]:
            began = time.perf_counter()
            search(query[None], effort)
            single_ms.append(1000 * (time.perf_counter() - began))
        p50, p99 = np.percentile(single_ms, [50, 99])
        points.append({"effort": effort, "recall": share, "qps": len(queries) / seconds, "p50_ms": p50, "p99_ms": p99})
        if share >= TARGETS[-1]:
            break
    return points


def main() -> None:
    """Builds, measures, prints."""
    system, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    vectors, queries, truth = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("vectors", "queries", "truth"))
    vectors, queries = np.asarray(vectors, np.float32), np.asarray(queries)
    if system == "lancedb":
        queries, truth = queries[::5], truth[::5]  # it answers one query at a time, in milliseconds
    before = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory(dir=folder) as work:
        started = time.process_time()
        search, efforts, stored = SYSTEMS[system](vectors, Path(work), threads)
        build_cpu_s = time.process_time() - started
        points = measure(search, efforts, queries, np.asarray(truth), threads)
        ram = psutil.Process().memory_info().rss - before
        disk = size_of(stored)
        shutil.rmtree(work, ignore_errors=True)
        Path(work).mkdir(exist_ok=True)
    num = len(vectors)
    figures = {
        "build_cpu_s": build_cpu_s,
        "disk_bytes_per_vector": disk / num,
        "ram_bytes_per_vector": ram / num,
        "points": points,
    }
    sys.stdout.write("\n" + json.dumps(figures) + "\n")
    sys.stdout.flush()
    os._exit(0)  # some of these libraries never end their threads


if __name__ == "__main__":
    main()
