"""All stored hashes near a query hash, exactly: multi-index hashing over bucket tables that are two flat arrays.

Two hashes within r bits agree within r // 15 bits in at least one of 15 disjoint keys of 17 bits, so only the buckets
around the query's own keys are looked at (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing",
CVPR 2012). The first bit stays out: it is the mean's, and nearly always 1. Every 15th bit makes a key, since neighbouring
cosines go together.

    hashes.mih   uint32: (15, 2**17 + 1) first place of each bucket, then (15, M) rows by bucket; for SCAN_BELOW rows and more

A stored hash takes 32 bytes, its places 60, the buckets 8 at a million rows. Fewer rows than SCAN_BELOW are all compared (FAISS).
Letters: M stored hashes, V = 8 dihedral variants of the query, T tables, B places of a bucket mask, C candidates.
"""

from functools import cache
from itertools import combinations
from pathlib import Path

import faiss
import numpy as np

HASH_BYTES = 32
TABLES_FILE = "hashes.mih"
NUM_TABLES = 15
KEY_BITS = 17
BUCKETS = 2**KEY_BITS
SCAN_BELOW = 50_000  # rows: fewer are scanned in the time that the probes take
CHUNK_ROWS = 65_536  # whose keys are made, or which are compared, at once
MASKS = [
    np.array([sum(1 << bit for bit in bits) for n in range(radius + 1) for bits in combinations(range(KEY_BITS), n)], np.int64)
    for radius in range(4)
]
MAX_RADIUS = NUM_TABLES * len(MASKS) - 1  # wider ones are scanned

Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def keys_of(hashes_M32: np.ndarray) -> np.ndarray:
    """(T, M) int32 keys of each hash."""
    bits = np.unpackbits(hashes_M32, axis=1)[:, 1:].reshape(-1, KEY_BITS, NUM_TABLES).astype(np.float32)
    weights = 2.0 ** np.arange(KEY_BITS, dtype=np.float32)  # sums below 2**24 are exact
    keys_TM: np.ndarray = np.einsum("mbt,b->tm", bits, weights).astype(np.int32)
    return keys_TM


def write_tables(folder: Path, hashes_M32: np.ndarray) -> None:
    """The bucket tables beside the hashes; nothing where there are too few to need them."""
    num = len(hashes_M32)
    if num < SCAN_BELOW:
        return
    keys_TM = np.concatenate([keys_of(hashes_M32[i : i + CHUNK_ROWS]) for i in range(0, num, CHUNK_ROWS)], axis=1)
    with (folder / TABLES_FILE).open("wb") as file:
        for keys_M in keys_TM:
            counts = np.bincount(keys_M, minlength=BUCKETS)
            file.write(np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32).data)
        for keys_M in keys_TM:
            order = np.argsort(keys_M.astype(np.uint16), kind="stable")  # 16 bits are sorted by radix
            order = order[np.argsort((keys_M >> 16).astype(np.uint8)[order], kind="stable")]
            file.write(order.astype(np.uint32).data)


class HashTable:
    """256-bit hashes, and their bucket tables where they have some."""

    def __init__(self, hashes_M32: np.ndarray, tables: Path | None = None) -> None:
        """`hashes_M32`: uint8, C order; a memory map stays one. `tables`: the file of `write_tables`; none = compare with all."""
        assert hashes_M32.dtype == np.uint8 and hashes_M32.shape[1:] == (32,), (hashes_M32.dtype, hashes_M32.shape)
        self.words_M4 = hashes_M32.view(np.uint64)
        self.halves = hashes_M32.reshape(-1).view(np.complex128)  # the first and the last 128 bits, each fetched in one go
        self.places: np.ndarray | None = None
        if tables is not None:
            num = len(hashes_M32)
            flat = np.asarray(np.memmap(tables, np.uint32, "r", shape=(NUM_TABLES * (BUCKETS + 1 + num),)))
            self.starts, self.places = flat[: NUM_TABLES * (BUCKETS + 1)], flat[NUM_TABLES * (BUCKETS + 1) :]

    @classmethod
    def open(cls, folder: Path, hashes_M32: np.ndarray) -> "HashTable":
        """With the tables of a shard's folder, where it has some."""
        path = folder / TABLES_FILE
        return cls(hashes_M32, path if path.is_file() else None)

    def lookup(self, hashes_V32: np.ndarray, max_distance: int) -> Found:
        """Every (row, variant) within `max_distance` bits: int64 rows, int64 variants, int32 distances, nearest first."""
        use_tables = self.places is not None and 0 <= max_distance <= MAX_RADIUS
        rows, variants, distances = (self._probe if use_tables else self._scan)(np.ascontiguousarray(hashes_V32), max_distance)
        order = np.lexsort((variants, rows, distances))
        return rows[order], variants[order], distances[order]

    def _scan(self, hashes_V32: np.ndarray, max_distance: int) -> Found:
        """Compared with all. Nothing is kept in memory, however many there are."""
        faiss.omp_set_num_threads(1)  # of this thread's calls; more would cost more than they save
        hashes_M32 = self.words_M4.view(np.uint8)
        found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))]
        for start in range(0, len(hashes_M32), CHUNK_ROWS):
            index = faiss.IndexBinaryFlat(8 * HASH_BYTES)
            index.add(hashes_M32[start : start + CHUNK_ROWS])
            ends, distances, rows = index.range_search(hashes_V32, max_distance + 1)
            sizes_V = np.diff(ends.view(np.int64)).astype(np.int64)
            found.append((start + rows, np.repeat(np.arange(len(hashes_V32)), sizes_V), distances.astype(np.int32)))
        rows, variants, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows, variants, distances

    def _probe(self, hashes_V32: np.ndarray, max_distance: int) -> Found:
        """Compared with what lies in the buckets around the keys."""
        assert self.places is not None
        table_B, mask_B = probes(max_distance)
        first_B = table_B * (BUCKETS + 1)
        buckets_VB = (np.take(keys_of(hashes_V32), table_B, axis=0) ^ mask_B[:, None]).T + first_B
        starts_VB = np.take(self.starts, buckets_VB).astype(np.int64)
        sizes_VB = np.take(self.starts, buckets_VB + 1) - starts_VB
        ends_V = sizes_VB.sum(axis=1).cumsum()
        rows_C = np.take(self.places, runs((starts_VB + table_B * len(self.words_M4)).ravel(), sizes_VB.ravel()), mode="clip")
        halves_C2 = np.take(self.halves, 2 * rows_C.astype(np.int64), mode="clip").view(np.uint64).reshape(-1, 2)
        queries_V4 = hashes_V32.view(np.uint64)
        for query_4, start, end in zip(queries_V4, [0, *ends_V], ends_V, strict=False):
            halves_C2[start:end] ^= query_4[:2]
        counts = np.bitwise_count(halves_C2).view(np.uint16)[:, 0]
        hopeful = np.flatnonzero((counts & 0xFF) + (counts >> 8) <= max_distance)  # of unlike hashes nearly none
        variants = np.searchsorted(ends_V, hopeful, side="right")
        rows = rows_C[hopeful].astype(np.int64)
        distances = set_bits(self.words_M4[rows] ^ queries_V4[variants])
        near = distances <= max_distance
        pairs, first = np.unique(rows[near] * len(hashes_V32) + variants[near], return_index=True)
        return pairs // len(hashes_V32), pairs % len(hashes_V32), distances[near][first]


def set_bits(words: np.ndarray) -> np.ndarray:
    """Of (..., 4) uint64, C order: (...) int32. The four counts of up to 64 are added within one word of 32 bits."""
    counts = np.bitwise_count(words).view(np.uint32)[..., 0]
    pairs = (counts & 0x00FF00FF) + ((counts >> 8) & 0x00FF00FF)
    return np.asarray(((pairs + (pairs >> 16)) & 0xFFFF).astype(np.int32))


@cache
def probes(max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Table and mask of every bucket to look at. With r = 15 w + s: w bits off in tables 0 to s, w - 1 in the others.

    Were a hash farther off than that in every table, it would differ in (s + 1)(w + 1) + (14 - s) w = r + 1 bits.
    """
    widest, rest = divmod(max_distance, NUM_TABLES)
    masks = [MASKS[widest] if table <= rest else MASKS[widest - 1] for table in range(NUM_TABLES) if table <= rest or widest]
    return np.repeat(np.arange(len(masks)), [len(mask) for mask in masks]), np.concatenate(masks)


def runs(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... for sizes[0] places, then those of the next run, one after the other."""
    filled = sizes > 0
    starts, sizes = starts[filled], sizes[filled]
    steps = np.ones(int(sizes.sum()), np.int64)
    if len(steps):
        steps[0] = starts[0]
        steps[sizes[:-1].cumsum()] = starts[1:] - (starts[:-1] + sizes[:-1] - 1)
    return steps.cumsum()
