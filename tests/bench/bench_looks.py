"""How the training of looks grows with the links: generated products whose kinds and colours decide what goes together.

    python -m tests.bench.bench_looks [--edges 100000 300000 1000000 3000000] [--out FILE]

Seconds of one epoch of each trained model and of counting, on the same products; `growth` is the exponent of the fit
seconds ~ edges ** growth: 1 is linear.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.config import TrainLooksConfig
from jobs.looks.content import Content, unit
from jobs.looks.graph import LookGraph
from jobs.looks.measure import TRAIN
from tests.bench.record import growth, record

NUM_PRODUCTS, NUM_KINDS, NUM_COLOURS, NUM_FEATURES = 50_000, 24, 12, 320
MODELS = ("cooccurrence", "mlp", "graph")


def make_content(random: np.random.Generator) -> tuple[Content, np.ndarray]:
    """Products and the colour of each."""
    kinds_N, colours_N = (random.integers(0, num, NUM_PRODUCTS) for num in (NUM_KINDS, NUM_COLOURS))
    features_NF = random.normal(0, 0.05, (NUM_PRODUCTS, NUM_FEATURES)).astype(np.float32)
    features_NF[np.arange(NUM_PRODUCTS), kinds_N] = 1
    features_NF[np.arange(NUM_PRODUCTS), NUM_KINDS + colours_N] = 1
    ids = tuple(f"p{number:06d}" for number in range(NUM_PRODUCTS))
    names = tuple(f"kind-{kind:02d}" for kind in kinds_N)
    return Content(ids, tuple((name,) for name in ids), names, features_NF, unit(features_NF[:, :64])), colours_N


def make_links(colours_N: np.ndarray, num_edges: int, random: np.random.Generator) -> LookGraph:
    """About `num_edges` directed links between products of one colour."""
    order = np.argsort(colours_N, kind="stable")
    starts = np.searchsorted(colours_N[order], np.arange(NUM_COLOURS + 1))
    sources_E = random.integers(0, NUM_PRODUCTS, num_edges)
    low_E, high_E = starts[colours_N[sources_E]], starts[colours_N[sources_E] + 1]
    targets_E = order[low_E + (random.random(num_edges) * (high_E - low_E)).astype(np.int64)]
    return LookGraph.of_edges(NUM_PRODUCTS, np.stack([sources_E, targets_E], axis=1))


def measure(sizes: list[int]) -> dict[str, Any]:
    """Seconds by model and number of links."""
    random = np.random.default_rng(5)
    content, colours_N = make_content(random)
    config = TrainLooksConfig(epochs=1, threads=2)
    torch.set_num_threads(config.threads)
    TRAIN["graph"](content, make_links(colours_N, 1000, random), config)  # the import of torch_geometric is no part of it
    rows: list[dict[str, Any]] = []
    for num_edges in sizes:
        graph = make_links(colours_N, num_edges, random)
        row: dict[str, Any] = {"edges": graph.num_edges}
        for name in MODELS:
            start = time.perf_counter()
            TRAIN[name](content, graph, config)
            row[f"{name}_s"] = round(time.perf_counter() - start, 2)
        rows.append(row)
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    edges = [row["edges"] for row in rows]
    growths = {name: growth(edges, [row[f"{name}_s"] for row in rows]) for name in MODELS}
    return {"products": NUM_PRODUCTS, "one_epoch": rows, "growth": growths}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored: products and links are generated")
    parser.add_argument("--edges", type=int, nargs="+", default=[100_000, 300_000, 1_000_000, 3_000_000])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    path = record("looks", measure(args.edges), ("torch", "torch_geometric", "numpy"), args.out)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
