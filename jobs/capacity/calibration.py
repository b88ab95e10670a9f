"""What this machine does: a small index of generated vectors, trained, filled and searched on one core.

Letters: N rows, D width, Q queries, F candidates.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from jobs.capacity.model import Rates
from serve.index.codes import Codes, Probes, merge_lists
from serve.index.exact import best_k
from serve.index.plan import IndexPlan, plan_index
from serve.index.spec import IndexConfig
from serve.index.template import train_template
from serve.index.vectors import RANGE_ROWS, JoinedVectors, StoredVectors, VectorWriter

NUM_QUERIES = 500
NPROBE = 32
K = 10
CANDIDATES = 100  # that are re-scored
SEARCH_ROUNDS = 5
MORE = 4  # times as many lists, and as many rows, tell what each of them costs
KMEANS_ITERATIONS = 10  # of FAISS's inverted files
CLUSTER_ROWS = 100
IVF_KINDS = ("auto", "ivf_pq4", "ivf_pq8", "ivf_rabitq", "ivf_sq8")
ALONE = np.arange(1)  # place of a query in a batch of one


def clustered(num: int, dim: int, seed: int = 7) -> np.ndarray:
    """(N, D) float32 unit vectors in clusters of about CLUSTER_ROWS."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(num // CLUSTER_ROWS, 1), dim), np.float32)
    vectors_ND = centres[random.integers(0, len(centres), num)] + 0.9 * random.standard_normal((num, dim), np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND


def measure_rates(num: int, dim: int, index: IndexConfig) -> Rates:
    """CPU seconds of one core for an index of `num` rows. Raises ValueError for a kind without lists: nothing to scale by."""
    plan = plan_index(num, dim, index)
    if plan.nlist == 1:
        raise ValueError(
            f"index.kind={index.kind}: {plan.kind} at {num} rows has no lists; plan with one of {', '.join(IVF_KINDS)}"
        )
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        vectors_ND = clustered(num, dim)
        start = time.process_time()
        template = train_template(plan, vectors_ND[: plan.train_rows], index.seed)
        train_s = time.process_time() - start
        start = time.process_time()
        faiss.Kmeans(dim, plan.nlist, niter=KMEANS_ITERATIONS, seed=index.seed).train(vectors_ND[: plan.train_rows])
        lists_train_s = time.process_time() - start
        filled = faiss.deserialize_index(np.frombuffer(template, np.uint8))
        start = time.process_time()
        filled.add(vectors_ND)
        add_s = time.process_time() - start
        start = time.process_time()
        faiss.extract_index_ivf(filled).quantizer.search(vectors_ND, 1)
        coarse_s = time.process_time() - start
        search = measure_search(filled, vectors_ND, plan)
    finally:
        faiss.omp_set_num_threads(threads)
    return Rates(
        nlist=plan.nlist,
        train_rows=min(num, plan.train_rows),
        train_s=train_s,
        lists_train_s=min(lists_train_s, train_s),
        add_s_per_row=add_s / num,
        coarse_frac=min(coarse_s / add_s, 1.0),
        **search,
    )


def measure_search(filled: Any, vectors_ND: np.ndarray, plan: IndexPlan) -> dict[str, float]:
    """Milliseconds of a query that comes alone: `list_ms` for each list there is, `row_ms` for each row of a list, `fixed_ms`.

    Where lists are found through a graph, their number costs nothing. `filled` grows: of real shards little lies in a cache, and
    lists are compared with in the middle of a search, for the same reason.
    """
    queries_QD, rows = vectors_ND[:NUM_QUERIES], MORE * len(vectors_ND) / plan.nlist
    centroids, list_ms = faiss.downcast_index(faiss.extract_index_ivf(filled).quantizer), 0.0
    with tempfile.TemporaryDirectory() as name:
        search = Search(stored_vectors(vectors_ND, plan, Path(name)), queries_QD, Path(name))
        grow(filled, MORE)
        few_ms = search.mean_ms(filled)
        grow(filled, MORE)
        row_ms = max(search.mean_ms(filled) - few_ms, 0.0) / ((MORE - 1) * rows)
        if isinstance(centroids, faiss.IndexFlat):
            many = faiss.IndexFlat(centroids.d, centroids.metric_type)
            for _ in range(MORE):
                many.add(centroids.reconstruct_n())
            more_ms = search.mean_ms(filled, many) - search.mean_ms(filled, centroids)
            list_ms = max(more_ms, 0.0) / ((MORE - 1) * plan.nlist)
    return {"list_ms": list_ms, "row_ms": row_ms, "fixed_ms": max(few_ms - list_ms * plan.nlist - row_ms * rows, 0.0)}


def grow(filled: Any, times: int) -> None:
    """Every list so many times as long, by copies of its rows."""
    one, lists = faiss.clone_index(filled), faiss.extract_index_ivf(filled)
    for _ in range(times - 1):
        other = faiss.clone_index(one)  # merging empties it
        merge_lists(lists, faiss.extract_index_ivf(other))
        filled.ntotal = lists.ntotal


def stored_vectors(vectors_ND: np.ndarray, plan: IndexPlan, folder: Path) -> JoinedVectors | None:
    """What candidates are re-scored with, in files as a shard has them: as many as the largest index has rows."""
    if plan.vectors == "none":
        return None
    writer = VectorWriter(folder, plan.vectors, vectors_ND.shape[1], vectors_ND[:RANGE_ROWS], norms=True)
    for _ in range(MORE * MORE):
        writer.add(vectors_ND)
    writer.close()
    return JoinedVectors([StoredVectors(folder, plan.vectors, vectors_ND.shape[1], norms=True)])


@dataclass(frozen=True)
class Search:
    """Candidates by their codes, in a file as a shard has it, re-scored; the best of them."""

    stored: JoinedVectors | None
    queries_QD: np.ndarray
    folder: Path

    def mean_ms(self, filled: Any, besides: Any = None) -> float:
        """Of one query. `besides`: centroids that are compared as well."""
        faiss.write_index(filled, str(self.folder / "index.faiss"))
        codes = Codes(self.folder / "index.faiss")

        def search(query_1D: np.ndarray) -> None:
            scores_1F, rows_1F = codes.search(Probes(query_1D), ALONE, CANDIDATES, NPROBE, None)
            if self.stored is not None:
                scores_1F = self.stored.cosines(query_1D, rows_1F)
            best_k(scores_1F, rows_1F, K)
            if besides is not None:
                besides.search(query_1D, NPROBE)

        return query_ms(search, self.queries_QD)


def query_ms(search: Callable[[np.ndarray], Any], queries_QD: np.ndarray) -> float:
    """Mean CPU milliseconds of one query, asked alone: of the fastest round, as the first reads lists that lie in no cache."""
    spent = []
    for _ in range(SEARCH_ROUNDS):
        start = time.process_time()
        for q in range(len(queries_QD)):
            search(queries_QD[q : q + 1])
        spent.append(time.process_time() - start)
    return 1000 * min(spent) / len(queries_QD)
