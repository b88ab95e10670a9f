"""What re-ranking costs: 1,000 candidates of a real release, on one core, every rule on; and the same with the learned ranking.

    python -m tests.bench.bench_rank [--out FILE]

Milliseconds at the median: gathering the columns from the shards, ranking, and both as a query pays it.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from serve.index.release import Release
from serve.index.search import fuse_crops
from serve.ranking.candidates import Shopper
from serve.ranking.gather import Shelf
from serve.ranking.ranker import FEATURES, Ranker
from serve.ranking.rerank import rerank
from serve.ranking.reranker import Reranker
from serve.ranking.spec import RankingConfig
from tests.bench.record import record
from tests.index.parts import unit, write_release

NUM_PRODUCTS, CANDIDATES, K, ROUNDS = 20_000, 1_000, 24, 400
EVERY_RULE = {
    "depth": CANDIDATES,
    "sold_out": "demote",
    "weights": {"availability": 0.05, "price": 0.05, "gender": 0.1, "popularity": 0.02, "recency": 0.02},
    "boosts": [
        {"name": "b1", "brand": "b1", "weight": 0.03},
        {"name": "season", "category": "bags", "weight": 0.02},
    ],
    "diversity": {"near_duplicates": "once", "variants": "once", "per_seller": 5},
}


def percentiles(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of many calls: of the core's own time, and of the clock, which counts other processes as well."""
    cpu, wall = [], []
    for _ in range(ROUNDS):
        started, clock = time.thread_time(), time.perf_counter()
        call()
        cpu.append(1000 * (time.thread_time() - started))
        wall.append(1000 * (time.perf_counter() - clock))
    medians = {"cpu_p50_ms": cpu, "wall_p50_ms": wall}
    return {name: round(float(np.median(took)), 3) for name, took in medians.items()}


def any_ranker() -> Ranker:
    """A model of the size that jobs.train_ranker makes: what it learned does not matter for its cost."""
    random = np.random.default_rng(0)
    features = random.normal(size=(4000, len(FEATURES)))
    labels = (features @ random.normal(size=len(FEATURES)) > 0).astype(int)
    data = lightgbm.Dataset(features, labels, group=[20] * 200, feature_name=list(FEATURES))
    return Ranker(lightgbm.train({"objective": "lambdarank", "num_leaves": 15, "verbose": -1}, data, 50).model_to_string())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored: the release is made here")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    config = RankingConfig.model_validate(EVERY_RULE)
    figures: dict[str, Any] = {"candidates": CANDIDATES, "k": K, "shards": 8}
    with tempfile.TemporaryDirectory() as temp:
        ids = [f"p{i:06d}" for i in range(NUM_PRODUCTS)]
        vectors = unit(np.random.default_rng(0).normal(size=(NUM_PRODUCTS, 32)))
        write_release(Path(temp), {"bags": (ids[::2], vectors[::2]), "shoes": (ids[1::2], vectors[1::2])}, num_buckets=4)
        release = Release.open(Path(temp), verify=False)
        results = fuse_crops(release.search(vectors[:1].astype(np.float32), CANDIDATES), CANDIDATES)
        assert len(results) == CANDIDATES
        shopper = Shopper("women", (100.0, 9000.0), "EUR")
        reranker, shelf = Reranker(config), Shelf(release.products)
        candidates = shelf.candidates(results, pictures=True)
        ranker = any_ranker()
        learned = Reranker(config, ranker)
        figures["gather"] = percentiles(lambda: shelf.candidates(results, pictures=True))
        figures["rank"] = percentiles(lambda: rerank(candidates, shopper, config, K))
        figures["rank_learned"] = percentiles(lambda: rerank(candidates, shopper, config, K, ranker))
        figures["query"] = percentiles(lambda: reranker.order(results, shelf, shopper, K))
        figures["query_learned"] = percentiles(lambda: learned.order(results, shelf, shopper, K))
    path = record("rank", figures, ("numpy", "pyarrow", "lightgbm"), args.out)
    sys.stdout.write(f"{path}\n{figures}\n")


if __name__ == "__main__":
    main()
