"""How a partition is indexed, by rule, and the empty trained index (the template) that its shards are filled into.

Rules (N rows of one shard, D width):
  under index.flat_below_rows  no index: an exact scan of the stored vectors is faster than what refinement costs
  nlist      4 * sqrt(N), the low end of FAISS's guideline (4..16 * sqrt(N)), a power of two, with at least 39 training rows a
             centroid (FAISS warns below 39; 32 were measured to be enough)
  code       PQ with D/4 sub-quantizers of 4 bits, fast-scan: with exact refinement the best of those measured at 1M x 256
             (recall@10 0.975 at 22.5k queries/s on one core; PQ64 without refinement never passes 0.88)
  OPQ        10 iterations: 50, the library's default, cost 5x and gained nothing
  coarse     HNSW above 16,384 lists (1.13x at low nprobe, 0.82x on hard queries at 4,096: not before)
  nprobe     chosen by evaluate_index from powers of two
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from serve.index.spec import IndexConfig

FLAT = "Flat"
POINTS_PER_CENTROID = 39
OPQ_ITERATIONS = 10
HNSW_LISTS = 16_384
SUB_BITS = 4
SUB_DIM = 4


@dataclass(frozen=True)
class IndexPlan:
    """What one partition gets."""

    factory: str  # FAISS factory string, or "Flat"
    nlist: int  # 1 for flat
    code_bytes: int  # of one row in the index, besides its 8-byte id; 0 for flat
    train_rows: int  # most rows of the training sample; 0 for flat
    nprobes: tuple[int, ...]  # to choose from, ascending

    @property
    def is_flat(self) -> bool:
        return self.factory == FLAT


def plan_index(num_rows: int, dim: int, config: IndexConfig) -> IndexPlan:
    """The plan of a partition whose largest shard has `num_rows` rows of `dim` floats. Raises ValueError for an impossible PQ."""
    too_small = num_rows < 2**SUB_BITS * POINTS_PER_CENTROID  # to train the code
    if config.kind == "flat" or too_small or (config.kind == "auto" and num_rows < config.flat_below_rows):
        return IndexPlan(FLAT, 1, 0, 0, (1,))
    sub_quantizers = config.pq_bytes * 8 // SUB_BITS or sub_quantizers_of(dim)
    if dim % sub_quantizers:
        raise ValueError(f"index.pq_bytes={config.pq_bytes}: {sub_quantizers} sub-quantizers do not divide the width {dim}")
    by_training = min(num_rows, config.train_rows) // POINTS_PER_CENTROID
    wanted = config.nlist or 2 ** round(math.log2(4 * math.sqrt(num_rows)))
    nlist = wanted if wanted <= by_training else 2 ** int(math.log2(by_training))
    coarse = f"IVF{nlist}_HNSW32" if nlist > HNSW_LISTS else f"IVF{nlist}"
    rotation = f"OPQ{sub_quantizers}," if config.opq else ""
    return IndexPlan(
        factory=f"{rotation}{coarse},PQ{sub_quantizers}x{SUB_BITS}fs",
        nlist=nlist,
        code_bytes=sub_quantizers * SUB_BITS // 8,
        train_rows=config.train_rows,
        nprobes=(*(2**i for i in range(nlist.bit_length()) if 2**i < nlist), nlist),
    )


def sub_quantizers_of(dim: int) -> int:
    """The even divisor of `dim` nearest to one sub-quantizer every 4 dimensions."""
    even = [m for m in range(2, dim + 1, 2) if dim % m == 0]
    return min(even, key=lambda m: abs(m - dim / SUB_DIM)) if even else dim


def train_template(plan: IndexPlan, vectors_ND: np.ndarray, seed: int) -> bytes:
    """The trained, empty index of `plan` as FAISS writes it; `vectors_ND` is the float32 training sample."""
    dim = vectors_ND.shape[1]
    index: Any = faiss.index_factory(dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    if plan.factory.startswith("OPQ"):
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = OPQ_ITERATIONS
        # Rotated for the codes the index really has; left alone, OPQ trains 8-bit codes: 7 times the time, the same recall.
        codes = faiss.ProductQuantizer(dim, plan.code_bytes * 8 // SUB_BITS, SUB_BITS)
        rotation.pq = codes  # `codes` must outlive the training: FAISS keeps a bare pointer
    faiss.extract_index_ivf(index).cp.seed = seed
    index.train(np.ascontiguousarray(vectors_ND, np.float32))
    return bytes(faiss.serialize_index(index))


def fill(template: bytes, vectors_ND: np.ndarray, progress: Callable[[int], None] | None = None) -> faiss.Index:
    """`template` with every row added, row number = FAISS id; converted from fp16 a chunk at a time."""
    index = faiss.deserialize_index(np.frombuffer(template, np.uint8))
    for start in range(0, len(vectors_ND), 65_536):
        chunk = np.ascontiguousarray(vectors_ND[start : start + 65_536], np.float32)
        index.add(chunk)
        if progress:
            progress(len(chunk))
    return index
