"""The tail of a query that waits for many shards, and what hedged requests do to it (Dean, Barroso: The Tail at Scale, 2013).

A query is as slow as its slowest shard. A hedged one asks a second replica where the first has not answered by `hedge_ms`, and
takes whichever comes first. Letters: Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

QUANTILES = (0.5, 0.99, 0.999)
BLOCK = 2_000_000  # latencies drawn at once


@dataclass(frozen=True)
class Tail:
    """Of the merged query over `num_shards` shards, in ms: plain and hedged; `extra_frac`: more requests."""

    num_shards: int
    plain_ms: tuple[float, ...]  # at QUANTILES
    hedged_ms: tuple[float, ...]
    extra_frac: float


def simulate(latencies_ms: np.ndarray, shard_counts: Sequence[int], hedge_at: float = 0.95, queries: int = 20_000) -> list[Tail]:
    """Draws measured latencies of one shard, independently for each shard and replica, with a fixed seed."""
    random, hedge_ms = np.random.default_rng(17), float(np.quantile(latencies_ms, hedge_at))
    tails = []
    for num_shards in shard_counts:
        plain_Q, hedged_Q, asked_again = np.zeros(queries), np.zeros(queries), 0
        step = max(BLOCK // num_shards, 1)
        for start in range(0, queries, step):
            size = (min(step, queries - start), num_shards)
            first, second = random.choice(latencies_ms, size), random.choice(latencies_ms, size)
            part = slice(start, start + size[0])
            plain_Q[part] = first.max(axis=1)
            hedged_Q[part] = np.minimum(first, np.where(first > hedge_ms, hedge_ms + second, first)).max(axis=1)
            asked_again += int((first > hedge_ms).sum())
        plain, hedged = (tuple(float(np.quantile(side, at)) for at in QUANTILES) for side in (plain_Q, hedged_Q))
        tails.append(Tail(num_shards, plain, hedged, asked_again / (queries * num_shards)))
    return tails
