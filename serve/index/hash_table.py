"""All stored hashes near a query hash, exactly: a flat scan of the memory-mapped hashes.

Letters: N stored hashes, 8 dihedral variants of the query, M matches.
"""

import numpy as np

CHUNK_ROWS = 65_536  # 2 MB of hashes: stays in the cache while the 8 variants pass over it


class HashTable:
    """256-bit hashes as four 64-bit words."""

    def __init__(self, hashes_N32: np.ndarray) -> None:
        """`hashes_N32`: uint8, C order; a memory map stays one."""
        assert hashes_N32.dtype == np.uint8 and hashes_N32.shape[1:] == (32,), (hashes_N32.dtype, hashes_N32.shape)
        self.words_N4 = hashes_N32.view(np.uint64)

    def lookup(self, hashes_832: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every (row, variant) within `max_distance` bits: int64 rows, int64 variants, int32 distances (M,), nearest first."""
        queries_84 = np.ascontiguousarray(hashes_832).view(np.uint64)
        found = []
        for start in range(0, len(self.words_N4), CHUNK_ROWS):
            words = self.words_N4[start : start + CHUNK_ROWS]
            for variant, query_4 in enumerate(queries_84):
                distances = np.bitwise_count(words ^ query_4).sum(axis=1, dtype=np.int32)
                rows = np.flatnonzero(distances <= max_distance)
                found.append((start + rows, np.full(len(rows), variant), distances[rows]))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)
        rows, variants, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((variants, rows, distances))
        return rows[order], variants[order], distances[order]
