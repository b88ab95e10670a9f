"""The index against exact search: what a partition finds, and the cheapest settings that find enough.

Letters: Q queries, D width, K places, S shards, G partitions.
"""

import bisect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from jobs.building import PartitionPlan, vectors_path
from jobs.evaluation.metrics import recall_at
from serve.index.exact import NONE_SCORE, cosines, exact_search
from serve.index.manifest import OperatingPoint, PartitionSpec
from serve.index.merge import merge_top_k
from serve.index.partition import Partition
from serve.index.plan import FLAT, cost_of
from serve.index.shard import Shard
from serve.index.vectors import map_rows

TARGET_PLACES = 10  # of which the target recall is
PLACES = 100  # recall is measured up to here
FILTERED_QUERIES = 50
SHARES = (0.5, 0.1, 0.01)  # of the products that a filter lets through
WIDENED = (1, 2, 4, 8)  # times refine_factor


@dataclass(frozen=True)
class Queries:
    """Stored crops that are searched for again; each one's own row is left out of its answer."""

    embeddings_QD: np.ndarray
    shards_Q: np.ndarray  # paths of the shards they lie in
    rows_Q: np.ndarray  # and their rows there


@dataclass(frozen=True)
class PartitionRecall:
    """What was chosen for one partition, and what it finds: (Q, K) arrays, best first.

    Recall compares true cosines: those that the index ranks by are rounded. A search for ten re-scores a tenth of the candidates
    of one for a hundred, so each recall is that of a search for as many.
    """

    spec: PartitionSpec
    found: dict[int, tuple[np.ndarray, np.ndarray]]  # K: scores that the index ranks by, cosines of the same rows as embedded
    exact_QK: np.ndarray  # PLACES of the truly nearest
    points: tuple[OperatingPoint, ...] = ()  # that were tried
    filtered: tuple[float, ...] = (1.0,) * len(SHARES)  # recall@10 where a share of the products may come back

    @property
    def recall(self) -> float:
        """Recall@10 of this partition."""
        return recall_at(self.found[TARGET_PLACES][1], self.exact_QK, TARGET_PLACES)


def sample_queries(shards: dict[str, Shard], num: int, seed: int) -> Queries:
    """A seeded sample of the stored crops of all shards."""
    starts = np.concatenate([[0], np.cumsum([shard.num_rows for shard in shards.values()])])
    chosen = np.sort(np.random.default_rng(seed).choice(starts[-1], min(num, starts[-1]), replace=False))
    places = np.searchsorted(starts, chosen, side="right") - 1
    rows, paths = chosen - starts[places], np.array(list(shards))[places]
    vectors = [shards[path].embedding(int(row)) for path, row in zip(paths, rows, strict=True)]
    return Queries(np.stack(vectors), paths, rows)


def measure_partition(
    folder: Path, planned: PartitionPlan, first: PartitionSpec, dim: int, queries: Queries, target: float, threads: int
) -> PartitionRecall:
    """The cheapest settings that reach `target` recall@10 in this partition, or the widest where none does, and what they find.

    Codes that are too coarse need more candidates, lists that are too few more lists; where both would do, `cost_of` decides.
    """
    faiss.omp_set_num_threads(threads)
    partition = Partition([Shard.open(folder / shard.path, first, dim) for shard in planned.shards], first)
    originals = [map_rows(vectors_path(folder, shard), np.float16, dim) for shard in planned.shards]
    own_Q = np.full(len(queries.rows_Q), -1)
    for shard, start in zip(planned.shards, partition.row_starts, strict=False):
        here = queries.shards_Q == shard.path
        own_Q[here] = queries.rows_Q[here] + start
    nearest = [exact_search(queries.embeddings_QD, vectors_ND, PLACES + 1) for vectors_ND in originals]
    rows_SQK = [np.where(rows >= 0, rows + at, -1) for (_, rows), at in zip(nearest, partition.row_starts, strict=False)]
    scores_QK, rows_QK = merge_top_k(np.stack([scores for scores, _ in nearest]), np.stack(rows_SQK), PLACES + 1)
    exact_QK, _ = without_own(scores_QK, rows_QK, own_Q, PLACES)
    if planned.factory == FLAT:
        exact = {places: (exact_QK[:, :places], exact_QK[:, :places]) for places in (TARGET_PLACES, PLACES)}
        return PartitionRecall(first, exact, exact_QK)
    points: dict[tuple[int, int], OperatingPoint] = {}

    def found(spec: PartitionSpec, places: int) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        """What a search for so many finds: scores and true cosines; and its CPU milliseconds a query."""
        partition.spec = spec
        start = time.process_time()
        scores_QK, rows_QK = partition.search(queries.embeddings_QD, places + 1)
        cpu_ms = 1000 * (time.process_time() - start) / len(queries.embeddings_QD)
        scores_QK, rows_QK = without_own(scores_QK, rows_QK, own_Q, places)
        return (scores_QK, true_cosines(queries.embeddings_QD, rows_QK, originals, partition.row_starts)), cpu_ms

    def look(nprobe: int, factor: int) -> float:
        """Recall@10 at one setting."""
        if (nprobe, factor) not in points:
            spec = first.model_copy(update={"nprobe": nprobe, "refine_factor": factor})
            (_, true_QK), cpu_ms = found(spec, TARGET_PLACES)
            recall = recall_at(true_QK, exact_QK, TARGET_PLACES)
            points[nprobe, factor] = OperatingPoint(nprobe=nprobe, refine_factor=factor, recall_at_10=recall, cpu_ms=cpu_ms)
        return points[nprobe, factor].recall_at_10

    factors = [first.refine_factor * more for more in WIDENED]
    nprobe, factor = cheapest(look, planned.nprobes, factors, target, partition.num_rows)
    chosen = first.model_copy(update={"nprobe": nprobe, "refine_factor": factor})
    answers = {places: found(chosen, places)[0] for places in (PLACES, TARGET_PLACES)}
    filtered = tuple(filtered_recall(partition, queries.embeddings_QD[:FILTERED_QUERIES], share) for share in SHARES)
    return PartitionRecall(chosen, answers, exact_QK, tuple(points[key] for key in sorted(points)), filtered)


def cheapest(
    recall_of: Callable[[int, int], float], nprobes: Sequence[int], factors: Sequence[int], target: float, num_rows: int
) -> tuple[int, int]:
    """nprobe and refine_factor that cost least among those whose recall reaches the target; the widest where none does.

    Recall grows with either, so the more candidates, the fewer lists are tried; no further than where that costs more.
    `nprobes` and `factors` ascend, the last of `nprobes` is all lists.
    """
    chosen, least, tried = (nprobes[-1], factors[-1]), math.inf, list(nprobes)
    for factor in factors:
        if recall_of(tried[-1], factor) < target:
            continue
        place = bisect.bisect_left(tried, True, key=lambda nprobe: recall_of(nprobe, factor) >= target)
        cost = cost_of(num_rows, tried[place] / nprobes[-1], TARGET_PLACES * factor)
        if cost >= least:
            break
        chosen, least, tried = (tried[place], factor), cost, tried[: place + 1]
    return chosen


def filtered_recall(partition: Partition, queries_QD: np.ndarray, share: float) -> float:
    """Recall@10 of distinct products against scoring every allowed row, where a seeded share of the products may come back."""
    allowed_P = np.random.default_rng(0).random(partition.num_products) < share
    found_QK, _ = partition.search_products(queries_QD, TARGET_PLACES, allowed_P)
    exact_QK, _ = partition.search_products(queries_QD, TARGET_PLACES, allowed_P, exact=True)
    return recall_at(found_QK, exact_QK, TARGET_PLACES)


def without_own(scores_QK: np.ndarray, rows_QK: np.ndarray, own_Q: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, places) scores, best first, and rows: each query's own row `own_Q` (-1 = elsewhere) left out."""
    own_QK = (rows_QK == own_Q[:, None]) | (rows_QK < 0)
    scores_QK, rows_QK = np.where(own_QK, NONE_SCORE, scores_QK), np.where(own_QK, -1, rows_QK)
    order_QK = np.argsort(-scores_QK, axis=1, kind="stable")[:, :places]
    return np.take_along_axis(scores_QK, order_QK, 1), np.take_along_axis(rows_QK, order_QK, 1)


def ranked(scores_GQK: np.ndarray, true_GQK: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """The best by score over partitions: (Q, places) scores, and their true cosines in the same order."""
    scores_QN, true_QN = (np.concatenate(list(side), axis=1) for side in (scores_GQK, true_GQK))
    order = np.argsort(-scores_QN, axis=1, kind="stable")[:, :places]
    return np.take_along_axis(scores_QN, order, 1), np.take_along_axis(true_QN, order, 1)


def true_cosines(
    queries_QD: np.ndarray, rows_QK: np.ndarray, vectors_SND: Sequence[np.ndarray], starts_S: np.ndarray
) -> np.ndarray:
    """(Q, K) cosines of the found rows with the vectors as they were embedded; -inf where row -1 says none.

    `starts_S`: first row of each shard, and the end.
    """
    true_QK = np.full(rows_QK.shape, NONE_SCORE, np.float32)
    for vectors_ND, start, end in zip(vectors_SND, starts_S, starts_S[1:], strict=False):
        here_QK = (rows_QK >= start) & (rows_QK < end)
        for q in np.flatnonzero(here_QK.any(axis=1)):
            true_QK[q, here_QK[q]] = cosines(queries_QD[q][None], vectors_ND[rows_QK[q, here_QK[q]] - start])[0]
    return true_QK
