"""What this machine does: a small index of generated vectors, trained, filled and searched on one core.

Letters: N rows, D width, Q queries.
"""

import time
from typing import Any

import faiss
import numpy as np

from jobs.capacity.model import Rates
from serve.index.plan import plan_index
from serve.index.spec import IndexConfig
from serve.index.template import train_template

NUM_QUERIES = 500
NPROBE = 32
SEARCH_ROUNDS = 5
KMEANS_ITERATIONS = 10  # of FAISS's inverted files
CLUSTER_ROWS = 100
IVF_KINDS = ("auto", "ivf_pq4", "ivf_pq8", "ivf_rabitq", "ivf_sq8")


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
        ivf = faiss.extract_index_ivf(filled)
        start = time.process_time()
        ivf.quantizer.search(vectors_ND, 1)
        coarse_s = time.process_time() - start
        ivf.nprobe = min(NPROBE, plan.nlist)
        search_s = search_cpu_s(filled, vectors_ND[:NUM_QUERIES])
    finally:
        faiss.omp_set_num_threads(threads)
    return Rates(
        rows=num,
        nlist=plan.nlist,
        train_rows=min(num, plan.train_rows),
        train_s=train_s,
        lists_train_s=min(lists_train_s, train_s),
        add_s_per_row=add_s / num,
        search_ms=1000 * search_s / NUM_QUERIES,
        coarse_frac=min(coarse_s / add_s, 1.0),
    )


def search_cpu_s(filled: Any, queries_QD: np.ndarray) -> float:
    """CPU seconds of one batch of searches: the fastest of some, as the first reads lists that lie in no cache yet."""
    spent = []
    for _ in range(SEARCH_ROUNDS):
        start = time.process_time()
        filled.search(queries_QD, 100)
        spent.append(time.process_time() - start)
    return min(spent)
