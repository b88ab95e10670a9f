"""How a partition is indexed, by rule. Every rule gives way to the setting of the same name.

Rules (N rows of one shard, D width):
  under index.flat_below_rows  no index: an exact scan of the stored vectors is faster than what refinement costs
  kind       ivf_pq4: with re-scoring the best of those measured at 1M x 256 (recall@10 0.975 at 22.5k queries/s on one core);
             ivf_rabitq is 1.09x as fast on easy queries, 0.86x on hard ones; ivf_pq8 without re-scoring is the smallest and
             never passes recall 0.88 there; ivf_sq8 needs no re-scoring; lsh is for comparison and for tiny devices
  nlist      4 * sqrt(N), the low end of FAISS's guideline (4..16 * sqrt(N)), a power of two, with at least 39 training rows a
             centroid (FAISS warns below 39; 32 were measured to be enough) of index.train_rows: ten million rows in 16,384 lists
             are searched 1.1 times as fast as with the 4,096 of 200,000, and built in 4.3 times the time; of several shards,
             N counts up to eight, which a process searches as one, as long as a shard's own lists fill a block of fast-scan
  code       PQ with D/4 sub-quantizers, of 4 bits in ivf_pq4 and 8 in ivf_pq8; with 4 bits at least 64 of them or D/2: of a
             million embeddings of photos with 128 dimensions, 143 near-equal ones together, 32 sub-quantizers find 0.89 and 64
             find 0.96; fewer where max_ram_bytes says so
  OPQ        10 iterations: 50, the library's default, cost 5x and gained nothing
  coarse     HNSW above 16,384 lists (1.13x at low nprobe, 0.82x on hard queries at 4,096: not before)
  vectors    flat fp16; re-scored kinds sq8, one byte a dimension (recall is lost by the codes, not by it); else none
  nprobe     chosen by evaluate_index from powers of two and what lies half way between them, together with the candidates that
             are re-scored: what costs least, by `cost_of`, of all that reaches index.target_recall
"""

import math
from dataclasses import dataclass

from serve.index.spec import IndexConfig, IndexKind, VectorKind

FLAT = "Flat"
POINTS_PER_CENTROID = 39
CHUNK_RAM_BYTES = 300_000_000  # of the libraries and of one chunk of float32 rows, besides what grows with the shard
KEY_BYTES = 450  # of a row's ids, URI and box while a shard is written
RECORD_BYTES = 250  # of a row's part in products.arrow, images.arrow, rows.arrow, hashes and colours
LEAST_LIST_ROWS = 32  # in the mean: what fast-scan looks at together
JOINED_SHARDS = 8
SUB_DIM = 4
LEAST_SUBS = 64  # of 4 bits
ID_BYTES = 8
CODE_BITS = {"ivf_pq4": 4, "ivf_pq8": 8}
REFINED = ("ivf_pq4", "ivf_rabitq", "lsh")
RESCORE_COST = 20
VECTOR_BYTES = {"fp16": 2, "sq8": 1, "none": 0}  # a dimension


@dataclass(frozen=True)
class IndexPlan:
    """What one partition gets."""

    kind: IndexKind
    factory: str  # FAISS factory string, or "Flat"
    vectors: VectorKind
    nlist: int  # 1 where there are no lists
    code_bytes: int  # of one row in the index, besides its id; 0 for flat
    train_rows: int  # most rows of the training sample; 0 for flat
    nprobes: tuple[int, ...]  # to choose from, ascending

    @property
    def is_flat(self) -> bool:
        return self.kind == "flat"

    @property
    def ram_bytes(self) -> int:
        """Of one row: what every search goes through, its code and its id."""
        return 0 if self.is_flat else self.code_bytes + (ID_BYTES if self.nlist > 1 else 0)


def plan_index(
    num_rows: int, dim: int, config: IndexConfig, ram_bytes: float = math.inf, total_rows: int | None = None
) -> IndexPlan:
    """The plan of a partition of `total_rows` rows of `dim` floats (none = one shard), `num_rows` of them in its largest shard.

    At most `ram_bytes` of RAM a row.

    Raises ValueError for what cannot be: a code that does not divide the width, or that no rule makes small enough.
    """
    kind = kind_of(num_rows, config)
    vectors = vectors_of(kind, config)
    if kind == "flat":
        return IndexPlan("flat", FLAT, vectors, 1, 0, 0, (1,))
    if kind == "lsh":
        bits = config.lsh_bits or 4 * dim
        if bits % 8:
            raise ValueError(f"index.lsh_bits={bits}: not a multiple of 8")
        return IndexPlan(kind, f"LSH{bits}", vectors, 1, bits // 8, config.train_rows, (1,))
    nlist = nlist_of(num_rows, total_rows or num_rows, config)
    code, code_bytes = code_of(kind, dim, config, ram_bytes - ID_BYTES)
    coarse = f"IVF{nlist}_HNSW32" if nlist > config.hnsw_lists else f"IVF{nlist}"
    steps = sorted({2**i for i in range(nlist.bit_length())} | {3 * 2**i for i in range(nlist.bit_length())})
    nprobes = (*(step for step in steps if step < nlist), nlist)
    return IndexPlan(kind, code.format(coarse=coarse), vectors, nlist, code_bytes, config.train_rows, nprobes)


def kind_of(num_rows: int, config: IndexConfig) -> IndexKind:
    """The kind for so many rows. What cannot be trained on them is flat."""
    if config.kind == "auto":
        return "flat" if num_rows < max(config.flat_below_rows, 2 ** CODE_BITS["ivf_pq4"] * POINTS_PER_CENTROID) else "ivf_pq4"
    least = 1 if config.kind in ("flat", "lsh") else POINTS_PER_CENTROID * 2 ** CODE_BITS.get(config.kind, 4)
    return config.kind if num_rows >= least else "flat"


def vectors_of(kind: IndexKind, config: IndexConfig) -> VectorKind:
    """What is stored beside the codes."""
    if kind == "flat":
        return "sq8" if config.vectors == "sq8" else "fp16"
    if config.vectors != "auto":
        return config.vectors
    return "sq8" if kind in REFINED else "none"


def nlist_of(num_rows: int, total_rows: int, config: IndexConfig) -> int:
    """Number of lists, which all shards of a partition have in common."""
    by_training = max(min(total_rows, config.train_rows) // POINTS_PER_CENTROID, 1)
    searched_rows = min(total_rows, JOINED_SHARDS * num_rows)
    lists = max(4 * math.sqrt(num_rows), min(4 * math.sqrt(searched_rows), num_rows / LEAST_LIST_ROWS))
    wanted = config.nlist or 2 ** round(math.log2(lists))
    return wanted if wanted <= by_training else 2 ** int(math.log2(by_training))


def code_of(kind: IndexKind, dim: int, config: IndexConfig, most_bytes: float) -> tuple[str, int]:
    """Factory string with a place for the lists, and bytes of one code."""
    if kind == "ivf_sq8":
        return within("{coarse},SQ8", dim, most_bytes)
    if kind == "ivf_rabitq":
        return within(f"RR{dim},{{coarse}},RaBitQfs", -(-dim // 8) + 8, most_bytes)  # a bit a dimension, two factors
    bits = CODE_BITS[kind]
    wanted = max(dim / SUB_DIM, min(LEAST_SUBS, dim / 2)) if bits == 4 else dim / SUB_DIM
    num = config.pq_bytes * 8 // bits or sub_quantizers_of(dim, int(min(most_bytes * 8 / bits, wanted)))
    if not num or dim % num:
        raise ValueError(f"index.pq_bytes={config.pq_bytes}: {num} sub-quantizers do not divide the width {dim}")
    rotation = f"OPQ{num}," if config.opq else ""
    return within(f"{rotation}{{coarse}},PQ{num}x{bits}{'fs' if bits == 4 else ''}", -(-num * bits // 8), most_bytes)


def within(code: str, code_bytes: int, most_bytes: float) -> tuple[str, int]:
    """The code, where it is small enough."""
    if code_bytes > most_bytes:
        raise ValueError(
            f"index.max_ram_bytes leaves {max(most_bytes, 0):.1f} bytes for a code of {code_bytes}: raise it, spread the shards "
            "over more machines, or take index.kind=ivf_pq4 with smaller index.pq_bytes"
        )
    return code, code_bytes


def sub_quantizers_of(dim: int, most: int) -> int:
    """The even divisor of `dim` nearest to `most` from below; the smallest there is where none is."""
    even = [m for m in range(2, dim + 1, 2) if dim % m == 0] or [dim]
    return max([m for m in even if m <= most], default=min(even))


def cost_of(num_rows: int, looked_at_frac: float, candidates: int) -> float:
    """Of one query, in rows whose codes are looked at: a share of all, and each re-scored candidate counts for twenty.

    One core of an AMD EPYC with AVX512 needs 4 ns for a code of 32 bytes and 80 ns for a candidate of 256, which lies anywhere.
    """
    return num_rows * looked_at_frac + RESCORE_COST * candidates


def build_ram_bytes(plan: IndexPlan, num_rows: int, dim: int) -> int:
    """About what the process needs that builds a shard: codes and keys; vectors pass through a chunk at a time."""
    lists = plan.nlist * dim * 4 + plan.nlist * 32 * plan.ram_bytes  # centroids; fast-scan fills the last block of each list
    return CHUNK_RAM_BYTES + lists + num_rows * (plan.ram_bytes + KEY_BYTES)


def disk_bytes(plan: IndexPlan, num_rows: int, dim: int) -> int:
    """About what a shard takes on disk while it is written: itself, and once more its vectors as fp16."""
    stored = plan.ram_bytes + VECTOR_BYTES[plan.vectors] * dim + RECORD_BYTES
    return plan.nlist * dim * 4 + num_rows * (stored + 2 * dim)
