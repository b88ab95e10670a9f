"""The empty trained index (the template) that the shards of a partition are filled into, and how well it still fits.

Letters: N rows, D width.
"""

from typing import Any

import faiss
import numpy as np

from serve.index.manifest import ReleaseError
from serve.index.plan import CODE_BITS, IndexPlan

OPQ_ITERATIONS = 10
DRIFT_ROWS = 20_000  # that the fit of a template is measured on
IP = faiss.METRIC_INNER_PRODUCT


def train_template(plan: IndexPlan, vectors_ND: np.ndarray, seed: int, *, on_gpu: bool = False) -> bytes:
    """The trained, empty index of `plan` as FAISS writes it; `vectors_ND` is the float32 training sample.

    Raises ReleaseError where a GPU is asked for and there is none.
    """
    dim = vectors_ND.shape[1]
    if plan.kind == "lsh":  # the factory knows LSH for L2 only; its codes know no metric
        lsh = faiss.IndexLSH(dim, plan.code_bytes * 8, True, False)
        return bytes(faiss.serialize_index(lsh))
    index: Any = faiss.index_factory(dim, plan.factory, IP)
    ivf: Any = faiss.extract_index_ivf(index)
    if plan.factory.startswith("OPQ"):
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = OPQ_ITERATIONS
        # Rotated for the codes the index really has; left alone, OPQ trains 8-bit codes: 7 times the time, the same recall.
        bits = CODE_BITS[plan.kind]
        codes = faiss.ProductQuantizer(dim, plan.code_bytes * 8 // bits, bits)
        rotation.pq = codes  # `codes` must outlive the training: FAISS keeps a bare pointer
    if hasattr(ivf, "use_precomputed_table"):
        ivf.use_precomputed_table = -1  # hides nlist * sub-quantizers * 1 KiB of RAM in every shard, and is of no use here
    ivf.cp.seed = seed
    if on_gpu:
        if not faiss.get_num_gpus():
            raise ReleaseError("index.train_on_gpu is on and FAISS sees no GPU: run where there is one, or set it to false")
        gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dim))  # cuVS where FAISS was built with it
        ivf.clustering_index = gpus
    index.train(np.ascontiguousarray(vectors_ND, np.float32))
    if on_gpu:
        ivf.clustering_index = None
    return bytes(faiss.serialize_index(index))


def fit_of(template: bytes, vectors_ND: np.ndarray) -> float:
    """Mean squared distance of the rows from the centroid of their list; the whole length, 1, where there are no lists."""
    index: Any = faiss.deserialize_index(np.frombuffer(template, np.uint8))
    if isinstance(index, faiss.IndexLSH):
        return 1.0
    rows_ND = np.ascontiguousarray(vectors_ND[:DRIFT_ROWS], np.float32)
    ivf = faiss.extract_index_ivf(index)
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        for place in range(chain.size()):
            rows_ND = faiss.downcast_VectorTransform(chain.at(place)).apply(rows_ND)
    _, lists_N1 = ivf.quantizer.search(rows_ND, 1)
    residual_ND = np.empty_like(rows_ND)
    ivf.quantizer.compute_residual_n(len(rows_ND), faiss.swig_ptr(rows_ND), faiss.swig_ptr(residual_ND), faiss.swig_ptr(lists_N1))
    return float(np.einsum("nd,nd->n", residual_ND, residual_ND).mean())
