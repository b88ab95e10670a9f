"""One shard: its vectors, its index and its records, opened from disk without being read into memory.

    vectors.f16   (N, D) little-endian fp16: exact re-scoring, and the stored embeddings
    hashes.u8     (M, 32) and colours.u8 (M, 48): of the M photos of images.arrow
    index.faiss   candidates for re-scoring; missing in a flat partition
    *.arrow       see serve.index.records

Letters: N rows, D width, Q queries, K neighbours, P products, M photos.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from serve.index.exact import CHUNK_ROWS, NONE_SCORE, cosines, exact_search, scan
from serve.index.manifest import Manifest, PartitionSpec, ReleaseError
from serve.index.merge import best_per_product
from serve.index.plan import FLAT
from serve.index.records import Records
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES

FAISS: Any = faiss  # its type stubs lack the keyword arguments of search parameters
INDEX_FILE = "index.faiss"
VECTORS_FILE = "vectors.f16"
HASHES_FILE = "hashes.u8"
COLOURS_FILE = "colours.u8"
NORM_TOLERANCE = 0.01  # of a stored unit vector; fp16 rounding moves it by less than 0.001
WIDEN = 4  # each further look fetches so many times more
FLAT_BLOCK = 2**24  # scores held at once by an exact scan


def map_rows(path: Path, dtype: type, width: int) -> np.ndarray:
    """The (N, width) array in a raw file, memory-mapped read-only. Raises ReleaseError where its size does not fit."""
    row_bytes = np.dtype(dtype).itemsize * width
    size = path.stat().st_size if path.is_file() else -1
    if size < 0 or size % row_bytes:
        raise ReleaseError(f"{path}: {'missing' if size < 0 else f'{size} bytes are no rows of {row_bytes}'}; build it again")
    if size == 0:
        return np.empty((0, width), dtype)
    return np.memmap(path, dtype, mode="r", shape=(size // row_bytes, width))


def check_vectors(vectors_ND: np.ndarray, dim: int, what: str) -> None:
    """Raises ReleaseError for another width, NaN, inf, or vectors that are not of unit length. FAISS would take them."""
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dim:
        raise ReleaseError(f"{what}: shape {vectors_ND.shape}, expected (rows, {dim})")
    for start in range(0, len(vectors_ND), CHUNK_ROWS):
        chunk = vectors_ND[start : start + CHUNK_ROWS].astype(np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", chunk, chunk))
        bad = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))  # NaN and inf are bad as well
        if bad.size:
            raise ReleaseError(
                f"{what}: row {start + bad[0]} has length {norms[bad[0]]:.4g}, expected 1 ({bad.size} such rows); embed it again"
            )


class Shard:
    """An open shard."""

    def __init__(self, folder: Path, spec: PartitionSpec, dim: int) -> None:
        self.spec, self.dim = spec, dim
        self.records = Records(folder)
        self.vectors_ND = map_rows(folder / VECTORS_FILE, np.float16, dim)
        self.hashes_M32 = map_rows(folder / HASHES_FILE, np.uint8, HASH_BYTES)
        self.colours_M48 = map_rows(folder / COLOURS_FILE, np.uint8, COLOUR_BYTES)
        self.index = None if spec.factory == FLAT else open_index(folder / INDEX_FILE)
        rows = {len(self.vectors_ND), self.records.num_rows} | ({self.index.ntotal} if self.index is not None else set())
        photos = {len(self.hashes_M32), len(self.colours_M48), self.records.images.num_rows}
        if len(rows) > 1 or len(photos) > 1:
            raise ReleaseError(f"{folder}: its files disagree on the number of rows {rows} or photos {photos}; build it again")
        # First row of each product: rows are sorted by product, and every product has at least one.
        self.starts_P = np.searchsorted(self.records.product_of_row_R, np.arange(self.records.num_products))

    @classmethod
    def open(cls, folder: Path, spec: PartitionSpec, dim: int) -> "Shard":
        """The shard in `folder`, memory-mapped. Raises ReleaseError, naming the file."""
        try:
            return cls(folder, spec, dim)
        except (OSError, RuntimeError, ValueError) as error:  # Arrow's and FAISS's own
            if isinstance(error, ReleaseError):
                raise
            raise ReleaseError(f"{folder}: can't be opened ({' '.join(str(error).split())[:200]}); build it again") from error

    @property
    def num_rows(self) -> int:
        return len(self.vectors_ND)

    def embedding(self, row: int) -> np.ndarray:
        """(D,) float32 of unit length."""
        vector = np.asarray(self.vectors_ND[row], np.float32)
        return np.asarray(vector / np.linalg.norm(vector))

    def search(self, queries_QD: np.ndarray, k: int, nprobe: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest crops: (Q, k) float32 cosines, exact after refinement, best first, and (Q, k) int64 rows (-1 = none)."""
        if self.index is None:
            return exact_search(queries_QD, self.vectors_ND, k)
        scores_QK = np.full((len(queries_QD), k), NONE_SCORE, np.float32)
        rows_QK = np.full((len(queries_QD), k), -1, np.int64)
        found_QF = self._candidates(queries_QD, k * self.spec.refine_factor, nprobe or self.spec.nprobe, None)
        for q, found_F in enumerate(found_QF):
            scores, rows = self._refine(queries_QD[q], found_F)
            best = np.argsort(-scores, kind="stable")[:k]
            scores_QK[q, : len(best)], rows_QK[q, : len(best)] = scores[best], rows[best]
        return scores_QK, rows_QK

    def search_products(
        self, queries_QD: np.ndarray, k: int, allowed_P: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest distinct products by their best crop: (Q, k) cosines, best first, and (Q, k) rows of those crops.

        `allowed_P`: bool, which products may come back. Fewer than k (-inf and -1 in their place) only where the shard has
        no more of them: the index is asked for more candidates, from more lists, until there are k or everything was seen.
        """
        scores_QK = np.full((len(queries_QD), k), NONE_SCORE, np.float32)
        rows_QK = np.full((len(queries_QD), k), -1, np.int64)
        num_products = self.records.num_products if allowed_P is None else int(allowed_P.sum())
        if num_products == 0:
            return scores_QK, rows_QK
        if self.index is None:
            block = max(FLAT_BLOCK // self.num_rows, 1)
            for start in range(0, len(queries_QD), block):
                part = slice(start, start + block)
                self._scan_products(queries_QD[part], allowed_P, scores_QK[part], rows_QK[part])
            return scores_QK, rows_QK
        selected = None if allowed_P is None else allowed_P[self.records.product_of_row_R]
        num_rows = self.num_rows if selected is None else int(selected.sum())
        fetch, nprobe = k * self.spec.refine_factor, self.spec.nprobe
        todo = np.arange(len(queries_QD))
        while todo.size:
            everything = fetch >= num_rows
            found_QF = self._candidates(queries_QD[todo], fetch, nprobe, selected) if not everything else None
            left = []
            for place, q in enumerate(todo):
                found_F = self._selected(selected) if found_QF is None else found_QF[place]
                scores, rows = self._refine(queries_QD[q], found_F)
                best = best_per_product(scores, self.records.product_of_row_R[rows], k)
                scores_QK[q, : len(best)], rows_QK[q, : len(best)] = scores[best], rows[best]
                if len(best) < min(k, num_products) and not everything:
                    left.append(q)
            todo = np.array(left, np.int64)
            fetch, nprobe = fetch * WIDEN, nprobe * WIDEN
        return scores_QK, rows_QK

    def _scan_products(
        self, queries_QD: np.ndarray, allowed_P: np.ndarray | None, scores_QK: np.ndarray, rows_QK: np.ndarray
    ) -> None:
        """Exact: every crop is scored, the best one of each product kept. Fills `scores_QK` and `rows_QK`."""
        scores_QN = np.concatenate([chunk for _, chunk in scan(queries_QD, self.vectors_ND)], axis=1)
        best_QP = np.maximum.reduceat(scores_QN, self.starts_P, axis=1)
        products = np.arange(best_QP.shape[1]) if allowed_P is None else np.flatnonzero(allowed_P)
        ends = np.append(self.starts_P[1:], self.num_rows)
        for q, best_P in enumerate(best_QP):
            chosen = products[np.argsort(-best_P[products], kind="stable")[: scores_QK.shape[1]]]
            scores_QK[q, : len(chosen)] = best_P[chosen]
            rows_QK[q, : len(chosen)] = [self.starts_P[p] + scores_QN[q, self.starts_P[p] : ends[p]].argmax() for p in chosen]

    def _candidates(self, queries_QD: np.ndarray, fetch: int, nprobe: int, selected: np.ndarray | None) -> np.ndarray:
        """(Q, fetch) rows that look near by their codes, -1 = none."""
        assert self.index is not None
        fetch = min(fetch, self.num_rows)
        options: dict[str, Any] = {"nprobe": min(nprobe, faiss.extract_index_ivf(self.index).nlist)}
        if selected is not None:
            options["sel"] = FAISS.IDSelectorBitmap(np.packbits(selected, bitorder="little"))
        params = FAISS.SearchParametersIVF(**options)
        if isinstance(self.index, faiss.IndexPreTransform):
            params = FAISS.SearchParametersPreTransform(index_params=params)
        _, rows_QF = self.index.search(queries_QD, fetch, params=params)
        return np.asarray(rows_QF)

    def _refine(self, query_D: np.ndarray, found_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact cosines of the found rows, and those rows, ascending: neighbours on disk are read together."""
        rows = np.sort(found_F[found_F >= 0])
        return cosines(query_D[None], self.vectors_ND[rows])[0], rows

    def _selected(self, selected: np.ndarray | None) -> np.ndarray:
        """Every row that may come back."""
        return np.arange(self.num_rows) if selected is None else np.flatnonzero(selected)


def open_index(path: Path) -> faiss.Index:
    """The index at `path`, its lists mapped from disk. Damage is not noticed here: verify the release first."""
    if not path.is_file():
        raise ReleaseError(f"{path}: missing from its shard; build the release again")
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


@dataclass(frozen=True)
class OpenShard:
    """A shard and its place in the release."""

    path: str
    partition: str
    bucket: int
    shard: Shard


def open_shards(folder: Path, manifest: Manifest, paths: Collection[str] | None) -> list[OpenShard]:
    """The shards at `paths` (none = all), memory-mapped. Raises ReleaseError for a path that the manifest does not name."""
    known = {entry.path for _, entry in manifest.shards()}
    if paths is not None and (unknown := set(paths) - known):
        raise ReleaseError(f"{folder}: no shard {sorted(unknown)}; the manifest has {sorted(known)}")
    return [
        OpenShard(entry.path, part.name, entry.bucket, Shard.open(folder / entry.path, part.spec, manifest.bundle.dim))
        for part, entry in manifest.shards()
        if paths is None or entry.path in paths
    ]
