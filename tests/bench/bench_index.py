"""This index beside raw FAISS, hnswlib, usearch, scann, LanceDB and milvus-lite: the same vectors, queries and exact truth.

    make bench-index [SIZES="100000 1000000"]
    python -m tests.bench.bench_index --sizes 100000 1000000 [--systems ours scann] [--peers .venv-bench/bin/python]
    python -m tests.bench.bench_index --sizes 1000000 --photos FOLDER      their embeddings, repeated with noise

Results go to results/index-<size>.json or index-photos-<size>.json, system by system (what is there already is kept with --keep),
and to a plot beside.
One core: a rate is queries a CPU second, so that what else the machine does matters less. `ours` is the kernel on a shard as
build_shards writes it; `faiss` the same type built and searched by FAISS alone, in turns with it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil

from jobs.evaluation.index_recall import cheapest
from serve.index.codes import Codes, Probes
from serve.index.exact import best_k
from serve.index.manifest import PartitionSpec
from serve.index.partition import Partition
from serve.index.plan import IndexPlan, plan_index
from serve.index.shard import INDEX_FILE, Shard
from serve.index.spec import IndexConfig
from serve.index.template import train_template
from serve.index.vectors import JoinedVectors, StoredVectors
from serve.index.writer import write_vectors
from tests.bench.index_plots import plot
from tests.bench.index_shard import write_bench_shard
from tests.bench.index_vectors import PLACES, embedded, generated, recall, tiled
from tests.bench.record import RESULTS, record

FAISS: Any = faiss
K = 10
TARGET = 0.95
BESIDE_MOST = 2_000_000  # vectors that are measured beside FAISS, in a whole shard
MILVUS_MOST = 100_000  # vectors; milvus-lite is for prototypes
ENOUGH = 0.97
FACTORS = (10, 20, 40, 80)
ROUNDS = 5
SAME_RECALL = 0.002  # shards may find so much less than one index
PEER_TIMEOUT_S = 3600
Search = Callable[[np.ndarray, int], np.ndarray]  # (queries, nprobe) -> (Q, K) rows


def cpu_s(call: Callable[[], Any]) -> tuple[Any, float]:
    """What `call` returns, and the CPU seconds it took."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def in_batches(search: Search, effort: int, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows found in batches of 100, and the CPU seconds it took; with more than one thread the seconds that passed.

    Each thread then searches one batch after the other, as an endpoint answers requests.
    """
    batches, threads = [queries[i : i + 100] for i in range(0, len(queries), 100)], faiss.omp_get_max_threads()
    if threads == 1:
        return cpu_s(lambda: np.concatenate([search(batch, effort) for batch in batches]))
    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        start = time.perf_counter()
        found = np.concatenate(list(pool.map(lambda batch: search(batch, effort), batches)))
        return found, time.perf_counter() - start


def sample_of(vectors: np.ndarray, plan: IndexPlan) -> np.ndarray:
    """The training sample, float32."""
    rows = np.random.default_rng(17).choice(len(vectors), min(plan.train_rows, len(vectors)), replace=False)
    return np.stack([vectors[row] for row in np.sort(rows)]).astype(np.float32)


def build_faiss(vectors: np.ndarray, template: bytes) -> tuple[Any, float]:
    """The same type by FAISS alone, in memory: the trained template filled, with SQ8 beside."""
    index = faiss.deserialize_index(np.frombuffer(template, np.uint8))
    refine = faiss.IndexScalarQuantizer(vectors.shape[1], FAISS.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)

    def fill() -> None:
        refine.train(vectors[:65_536].astype(np.float32))
        for start in range(0, len(vectors), 65_536):
            chunk = vectors[start : start + 65_536].astype(np.float32)
            index.add(chunk)
            refine.add(chunk)

    _, fill_s = cpu_s(fill)
    return faiss.IndexRefine(index, refine), fill_s


def faiss_params(nprobe: int, factor: int) -> Any:
    """Of one search of the refined index."""
    inner = FAISS.SearchParametersPreTransform(index_params=FAISS.SearchParametersIVF(nprobe=nprobe))
    return FAISS.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)


def measure(search: Search, nprobe: int, queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Recall, rate and latencies at one nprobe; easy and hard queries apart as well."""
    found, seconds = in_batches(search, nprobe, queries)
    half, single_ms = len(queries) // 2, []
    for query in queries[:: max(len(queries) // 200, 1)]:
        start = time.perf_counter()
        search(query[None], nprobe)
        single_ms.append(1000 * (time.perf_counter() - start))
    p50, p99 = np.percentile(single_ms, [50, 99])
    parts = {"recall_easy": recall(found[:half], truth[:half]), "recall_hard": recall(found[half:], truth[half:])}
    point = {"effort": nprobe, "recall": recall(found, truth), "qps": len(queries) / seconds}
    return point | {"p50_ms": p50, "p99_ms": p99} | parts


def bench_ours(folder: Path, threads: int) -> dict[str, dict[str, Any]]:
    """`ours` and `faiss`, searched in turns on the same machine state."""
    vectors, queries, truth = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("vectors", "queries", "truth"))
    queries, num, dim = np.asarray(queries), len(vectors), vectors.shape[1]
    faiss.omp_set_num_threads(threads)
    plan = plan_index(num, dim, IndexConfig())
    template, train_s = cpu_s(lambda: train_template(plan, sample_of(vectors, plan), 17))  # FAISS's own, for both
    raw, raw_fill_s = build_faiss(vectors, template)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        _, vectors_s = cpu_s(lambda: write_vectors(Path(work), vectors, template, plan.vectors))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        _, shard_s = cpu_s(lambda: write_bench_shard(Path(work), vectors, template, plan.vectors))
        searched = {file.name: file.stat().st_size for file in Path(work).iterdir()}
        spec = PartitionSpec(factory=plan.factory, vectors=plan.vectors, nprobe=1, refine_factor=10, metric="cosine")
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        partition = Partition([Shard.open(Path(work), spec, dim)], spec)
        open_s = time.perf_counter() - start
        ours = lambda queries, nprobe: partition.search(queries, K, nprobe)[1]  # noqa: E731
        theirs = lambda queries, nprobe: raw.search(queries, K, params=faiss_params(nprobe, factor))[1]  # noqa: E731
        points: dict[str, list[dict[str, Any]]] = {"ours": [], "faiss": []}
        factor = choose_candidates(partition, plan.nprobes, queries, truth)
        for nprobe in plan.nprobes:
            for name, search in (("ours", ours), ("faiss", theirs)):
                points[name].append(measure(search, nprobe, queries, truth))
            if points["ours"][-1]["recall"] >= ENOUGH:
                break
        opened_rss = psutil.Process().memory_info().rss - before
        at = next((p["effort"] for p in points["ours"] if p["recall"] >= TARGET), points["ours"][-1]["effort"])
        pairs = [(measure(ours, at, queries, truth)["qps"], measure(theirs, at, queries, truth)["qps"]) for _ in range(ROUNDS)]
        products = lambda queries, nprobe: partition.search_products(queries, K, nprobe=nprobe)[1]  # noqa: E731
        distinct = [measure(products, at, queries, truth)["qps"] for _ in range(ROUNDS)]
        filtered = filtered_recall(partition, queries, at)
    kernel = sum(searched.get(name, 0) for name in ("index.faiss", "vectors.sq8", "norms.f32", "ranges.f32"))
    return {
        "ours": {
            "factory": plan.factory,
            "refine_factor": factor,
            "build_cpu_s": train_s + vectors_s,
            "shard_cpu_s": train_s + shard_s,
            "disk_bytes_per_vector": kernel / num,
            "shard_bytes_per_vector": sum(searched.values()) / num,
            "ram_bytes_per_vector": opened_rss / num,
            "open_s": open_s,
            "points": points["ours"],
            "rate_against_faiss": float(np.median([a / b for a, b in pairs])),
            "distinct_rate_against_faiss": float(np.median(distinct) / np.median([b for _, b in pairs])),
            "filtered_recall_at_10": filtered,
        },
        "faiss": {"factory": plan.factory, "build_cpu_s": train_s + raw_fill_s, "points": points["faiss"]},
    }


def bench_rows(folder: Path, threads: int) -> dict[str, dict[str, Any]]:
    """`ours` where it is too large to stand beside another: the files that vectors are searched in, without records and FAISS."""
    vectors, queries, truth = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("vectors", "queries", "truth"))
    queries, num, dim = np.asarray(queries), len(vectors), vectors.shape[1]
    faiss.omp_set_num_threads(threads)
    plan = plan_index(num, dim, IndexConfig())
    template, train_s = cpu_s(lambda: train_template(plan, sample_of(vectors, plan), 17))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        _, vectors_s = cpu_s(lambda: write_vectors(Path(work), vectors, template, plan.vectors))
        built_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        disk = sum(file.stat().st_size for file in Path(work).iterdir())
        start = time.perf_counter()
        codes, stored = Codes(Path(work) / INDEX_FILE), JoinedVectors([StoredVectors(Path(work), plan.vectors, dim, norms=True)])
        open_s = time.perf_counter() - start
        factor = FACTORS[0]

        def search(queries_QD: np.ndarray, nprobe: int) -> np.ndarray:
            every_Q = np.arange(len(queries_QD))
            _, rows_QF = codes.search(Probes(queries_QD), every_Q, K * factor, nprobe, None)
            return best_k(stored.cosines(queries_QD, rows_QF), rows_QF, K)[1]

        def recall_of(nprobe: int, tried: int) -> float:
            nonlocal factor
            factor = tried
            return recall(search(queries[::5], nprobe), truth[::5])

        most, factor = cheapest(recall_of, plan.nprobes, FACTORS, TARGET, num)
        points = [measure(search, nprobe, queries, truth) for nprobe in plan.nprobes if nprobe <= 2 * most]
    return {
        "ours": {
            "factory": plan.factory,
            "refine_factor": factor,
            "build_cpu_s": train_s + vectors_s,
            "build_peak_bytes": built_bytes,
            "disk_bytes_per_vector": disk / num,
            "open_s": open_s,
            "points": points,
        }
    }


def choose_candidates(partition: Partition, nprobes: tuple[int, ...], queries: np.ndarray, truth: np.ndarray) -> int:
    """The refine_factor that evaluate_index would choose for the target; the partition is searched with it from now on."""

    def recall_of(nprobe: int, factor: int) -> float:
        partition.spec = partition.spec.model_copy(update={"refine_factor": factor})
        return recall(partition.search(queries[::5], K, nprobe)[1], truth[::5])

    _, factor = cheapest(recall_of, nprobes, FACTORS, TARGET, partition.num_rows)
    partition.spec = partition.spec.model_copy(update={"refine_factor": factor})
    return factor


def bench_sharded(folder: Path, threads: int, num_shards: int = 8) -> dict[str, Any]:
    """The same vectors in shards of one partition, searched by one process, beside one shard of all of them."""
    vectors, queries, truth = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("vectors", "queries", "truth"))
    queries, num, dim = np.asarray(queries), len(vectors), vectors.shape[1]
    faiss.omp_set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        partitions: dict[str, Partition] = {}
        nprobes: dict[str, tuple[int, ...]] = {}
        open_s: dict[str, float] = {}
        for name, parts in (("one", 1), ("shards", num_shards)):
            starts = np.linspace(0, num, parts + 1).astype(int)
            plan = plan_index(num // parts, dim, IndexConfig(), total_rows=num)
            template, nprobes[name] = train_template(plan, sample_of(vectors, plan), 17), plan.nprobes
            spec = PartitionSpec(factory=plan.factory, vectors=plan.vectors, nprobe=1, refine_factor=10, metric="cosine")
            for i in range(parts):
                target = Path(work) / f"{name}-{i}"
                target.mkdir()
                write_bench_shard(target, vectors[starts[i] : starts[i + 1]], template, plan.vectors)
            begun = time.perf_counter()
            partitions[name] = Partition([Shard.open(Path(work) / f"{name}-{i}", spec, dim) for i in range(parts)], spec)
            open_s[name] = time.perf_counter() - begun

        def search(name: str, queries_QD: np.ndarray, nprobe: int) -> np.ndarray:
            return partitions[name].search(queries_QD, K, nprobe)[1]

        factor = choose_candidates(partitions["one"], nprobes["one"], queries, truth)
        partitions["shards"].spec = partitions["shards"].spec.model_copy(update={"refine_factor": factor})
        chosen = {}
        for name in ("one", "shards"):
            for nprobe in nprobes[name]:
                chosen[name] = measure(partial(search, name), nprobe, queries, truth)
                if chosen[name]["recall"] >= (TARGET if name == "one" else chosen["one"]["recall"] - SAME_RECALL):
                    break
        rates = {
            name: [measure(partial(search, name), point["effort"], queries, truth)["qps"] for _ in range(ROUNDS)]
            for name, point in chosen.items()
        }
    ratio = float(np.median(rates["shards"]) / np.median(rates["one"]))
    return {
        "points": [chosen["shards"]],
        "one": chosen["one"],
        "refine_factor": factor,
        "rate_against_one": ratio,
        "open_s": open_s,
    }


def filtered_recall(partition: Partition, queries: np.ndarray, nprobe: int) -> dict[str, dict[str, float]]:
    """Recall@10 and milliseconds a query where a seeded share of the products may come back."""
    found = {}
    for share in (0.5, 0.1, 0.01):
        allowed = np.random.default_rng(1).random(partition.num_products) < share
        part = queries[::10]
        (_, rows), seconds = cpu_s(partial(partition.search_products, part, K, allowed, nprobe))
        _, exact = partition.search_products(part, K, allowed, exact=True)
        found[f"{share:g}"] = {"recall": recall(rows, exact), "cpu_ms": 1000 * seconds / len(part)}
    return found


def bench_peer(python: str, system: str, folder: Path, threads: int) -> dict[str, Any]:
    """What index_peers.py prints."""
    command = [python, str(Path(__file__).parent / "index_peers.py"), system, str(folder), str(threads)]
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "LANCE_CPU_THREADS", "TOKIO_WORKER_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, env=environment, check=False)
    if done.returncode != 0:
        return {"error": done.stderr[-500:]}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def rate_at(points: list[dict[str, Any]], target: float = TARGET) -> float | None:
    """Best rate of the points that reach the target."""
    return max((point["qps"] for point in points if point["recall"] >= target), default=None)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored: the settings are those of the rules")
    parser.add_argument("--folder", type=Path, default=Path("store/bench"), help="where vectors are kept between runs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000])
    parser.add_argument("--systems", nargs="+", default=["ours"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", default=".venv-bench/bin/python")
    parser.add_argument("--photos", type=Path, help="folder of photos, whose embeddings are tiled with noise; none = generated")
    parser.add_argument("--bundle", type=Path, default=Path("serve/bundles/generated-v1"), help="what embeds --photos")
    parser.add_argument("--keep", action="store_true", help="systems that were measured before stay as they are")
    args = parser.parse_args()
    real = None if args.photos is None else embedded(args.photos, args.bundle)
    for size in args.sizes:
        folder = generated(args.folder, size) if real is None else tiled(args.folder, real, size)
        name = f"index-{'' if real is None else 'photos-'}{size}" + (f"-{args.threads}-threads" if args.threads > 1 else "")
        dim = np.load(folder / "queries.npy", mmap_mode="r").shape[1]
        path = RESULTS / f"{name}.json"
        figures: dict[str, Any] = json.loads(path.read_text())["figures"]["systems"] if args.keep and path.is_file() else {}
        for system in args.systems:
            if system in figures or (system == "milvus" and size > MILVUS_MOST):
                continue
            if system == "ours":
                figures |= (bench_ours if size <= BESIDE_MOST else bench_rows)(folder, args.threads)
            elif system == "ours_8_shards":
                figures[system] = bench_sharded(folder, args.threads)
            else:
                figures[system] = bench_peer(args.peers, system, folder, args.threads)
            rates = {other: rate_at(found.get("points", [])) for other, found in figures.items()}
            document = {"vectors": size, "dim": dim, "places": PLACES, "qps_at_recall_0.95": rates, "systems": figures}
            record(name, document, ("faiss-gpu", "numpy"))
            sys.stdout.write(f"{size} {system}: " + json.dumps(rates) + "\n")
            sys.stdout.flush()
        plot(figures, size, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
