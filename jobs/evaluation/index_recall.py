"""The index against exact search: what a partition finds, and the cheapest settings that find enough.

Letters: Q queries, D width, K places, S shards.
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
from serve.index.codes import Probes
from serve.index.exact import NONE_SCORE, cosines, exact_search
from serve.index.manifest import OperatingPoint, PartitionSpec
from serve.index.merge import merge_top_k
from serve.index.plan import FLAT, cost_of
from serve.index.shard import Shard
from serve.index.vectors import map_rows

TARGET_PLACES = 10  # of which the target recall is
PLACES = 100  # recall is measured up to here
FILTERED_QUERIES = 50
SHARES = (0.5, 0.1, 0.01)  # of the products that a filter lets through
WIDENED = (1, 2, 4, 8)  # times refine_factor
Answers = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # by shard: scores it ranks by, rows, their true cosines


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
    folder: Path, partition: PartitionPlan, first: PartitionSpec, dim: int, queries: Queries, target: float, threads: int
) -> PartitionRecall:
    """The cheapest settings that reach `target` recall@10 in this partition, or the widest where none does, and what they find.

    Codes that are too coarse need more candidates, lists that are too few more lists; where both would do, `cost_of` decides.
    """
    faiss.omp_set_num_threads(threads)
    shards = {shard.path: Shard.open(folder / shard.path, first, dim) for shard in partition.shards}
    originals = {shard.path: map_rows(vectors_path(folder, shard), np.float16, dim) for shard in partition.shards}
    nearest = {path: exact_search(queries.embeddings_QD, vectors_ND, PLACES + 1) for path, vectors_ND in originals.items()}
    exact_QK, _ = merged(queries, {path: (scores, rows, scores) for path, (scores, rows) in nearest.items()}, PLACES)
    if partition.factory == FLAT:
        exact = {places: (exact_QK[:, :places], exact_QK[:, :places]) for places in (TARGET_PLACES, PLACES)}
        return PartitionRecall(first, exact, exact_QK)
    points: dict[tuple[int, int], OperatingPoint] = {}

    def found(spec: PartitionSpec, places: int) -> tuple[tuple[np.ndarray, np.ndarray], float]:
        """What a search for so many finds, and its CPU milliseconds a query."""
        for shard in shards.values():
            shard.spec = spec.of_shard(len(shards))
        start, probes = time.process_time(), Probes(queries.embeddings_QD)
        looked = {path: shard.search(queries.embeddings_QD, places + 1, probes=probes) for path, shard in shards.items()}
        cpu_ms = 1000 * (time.process_time() - start) / len(queries.embeddings_QD)
        answers = {
            path: (scores, rows, true_cosines(queries.embeddings_QD, rows, originals[path]))
            for path, (scores, rows) in looked.items()
        }
        return merged(queries, answers, places), cpu_ms

    def look(nprobe: int, factor: int) -> float:
        """Recall@10 at one setting."""
        if (nprobe, factor) not in points:
            spec = first.model_copy(update={"nprobe": nprobe, "refine_factor": factor})
            (_, true_QK), cpu_ms = found(spec, TARGET_PLACES)
            recall = recall_at(true_QK, exact_QK, TARGET_PLACES)
            points[nprobe, factor] = OperatingPoint(nprobe=nprobe, refine_factor=factor, recall_at_10=recall, cpu_ms=cpu_ms)
        return points[nprobe, factor].recall_at_10

    factors = [first.refine_factor * more for more in WIDENED]
    nprobe, factor = cheapest(look, partition.nprobes, factors, target, sum(map(len, originals.values())))
    chosen = first.model_copy(update={"nprobe": nprobe, "refine_factor": factor})
    return PartitionRecall(
        chosen,
        {places: found(chosen, places)[0] for places in (PLACES, TARGET_PLACES)},
        exact_QK,
        tuple(points[key] for key in sorted(points)),
        tuple(filtered_recall(list(shards.values()), queries.embeddings_QD[:FILTERED_QUERIES], s) for s in SHARES),
    )


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


def filtered_recall(shards: list[Shard], queries_QD: np.ndarray, share: float) -> float:
    """Recall@10 of distinct products against scoring every allowed row, where a seeded share of the products may come back."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    exact: list[tuple[np.ndarray, np.ndarray]] = []
    for shard in shards:
        allowed_P = np.random.default_rng(len(found)).random(shard.records.num_products) < share
        chosen = shard.spec
        found.append(shard.search_products(queries_QD, TARGET_PLACES, allowed_P))
        shard.spec = chosen.model_copy(update={"refine_factor": shard.num_rows + 1})
        exact.append(shard.search_products(queries_QD, TARGET_PLACES, allowed_P))
        shard.spec = chosen
    found_QK, exact_QK = (
        merge_top_k(np.stack([scores for scores, _ in side]), np.stack([rows for _, rows in side]), TARGET_PLACES)[0]
        for side in (found, exact)
    )
    return recall_at(found_QK, exact_QK, TARGET_PLACES)


def merged(queries: Queries, answers: Answers, places: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, places) scores and true cosines over the shards, each query's own row left out."""
    scores, cosines_true = [], []
    for path, (scores_QK, rows_QK, true_QK) in answers.items():
        own = (queries.shards_Q == path)[:, None] & (rows_QK == queries.rows_Q[:, None])
        scores.append(np.where(own, NONE_SCORE, scores_QK))
        cosines_true.append(np.where(own, NONE_SCORE, true_QK))
    return ranked(np.stack(scores), np.stack(cosines_true), places)


def ranked(scores_SQK: np.ndarray, true_SQK: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """The best by score over shards or partitions: (Q, places) scores, and their true cosines in the same order."""
    scores_QN, true_QN = (np.concatenate(list(side), axis=1) for side in (scores_SQK, true_SQK))
    order = np.argsort(-scores_QN, axis=1, kind="stable")[:, :places]
    return np.take_along_axis(scores_QN, order, 1), np.take_along_axis(true_QN, order, 1)


def true_cosines(queries_QD: np.ndarray, rows_QK: np.ndarray, vectors_ND: np.ndarray) -> np.ndarray:
    """(Q, K) cosines of the found rows with the vectors as they were embedded; -inf where row -1 says none."""
    true_QK = np.full(rows_QK.shape, NONE_SCORE, np.float32)
    for query_D, rows_K, true_K in zip(queries_QD, rows_QK, true_QK, strict=True):
        true_K[rows_K >= 0] = cosines(query_D[None], vectors_ND[rows_K[rows_K >= 0]])[0]
    return true_QK
