"""One shard: its vectors, its index and its records, opened from disk without being read into memory.

    vectors.*     exact re-scoring, and the stored embeddings; see serve.index.vectors
    hashes.u8     (M, 32) and colours.u8 (M, 48): of the M photos of images.arrow; hashes.mih: see serve.index.hash_table
    hubness.f32   (P,) where the bundle has queries; see serve.index.hubness
    index.faiss   candidates for re-scoring; missing in a flat partition
    *.arrow       see serve.index.records

Letters: N rows, D width, Q queries, K neighbours, F candidates, P products, M photos.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.index.codes import Codes, Probes
from serve.index.exact import CHUNK_ROWS, NONE_SCORE, best_k, cosines, exact_search, scan
from serve.index.hubness import HUBNESS_FILE
from serve.index.manifest import Manifest, PartitionSpec, ReleaseError
from serve.index.merge import distinct_top_k
from serve.index.plan import FLAT
from serve.index.records import Records
from serve.index.tombstones import Tombstones
from serve.index.vectors import StoredVectors, map_rows
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES

INDEX_FILE = "index.faiss"
HASHES_FILE = "hashes.u8"
COLOURS_FILE = "colours.u8"
NORM_TOLERANCE = 0.01  # of a stored unit vector; fp16 rounding moves it by less than 0.001
KEPT = 4  # times k rows, best first, hold k products of most queries; all candidates are looked at where they do not
WIDEN = 4  # each further look fetches so many times more
FLAT_BLOCK = 2**24  # scores held at once by an exact scan
SCAN_ROWS = 2_048  # rows that a filter leaves: so few are scored exactly, in less time than lists are looked at


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
    """An open shard. Searching is safe from several threads; each sets its own number of OpenMP threads."""

    def __init__(self, folder: Path, spec: PartitionSpec, dim: int) -> None:
        self.folder, self.spec, self.dim = folder, spec, dim
        self.records = Records(folder)
        self.vectors_ND = StoredVectors(folder, spec.vectors, dim, norms=spec.factory != FLAT) if spec.vectors != "none" else None
        self.hashes_M32 = map_rows(folder / HASHES_FILE, np.uint8, HASH_BYTES)
        self.colours_M48 = map_rows(folder / COLOURS_FILE, np.uint8, COLOUR_BYTES)
        hubs = folder / HUBNESS_FILE
        self.hubness_P = map_rows(hubs, np.float32, 1)[:, 0] if hubs.is_file() else None
        self.codes = None if spec.factory == FLAT else Codes(folder / INDEX_FILE)
        rows = {self.records.num_rows}
        rows |= {len(self.vectors_ND)} if self.vectors_ND is not None else set()
        rows |= {len(self.codes)} if self.codes is not None else set()
        photos = {len(self.hashes_M32), len(self.colours_M48), self.records.images.num_rows}
        if len(rows) > 1 or len(photos) > 1:
            raise ReleaseError(f"{folder}: its files disagree on the number of rows {rows} or photos {photos}; build it again")
        if self.hubness_P is not None and len(self.hubness_P) != self.records.num_products:
            raise ReleaseError(f"{hubs}: of {len(self.hubness_P)} products, not {self.records.num_products}; build it again")
        # First row of each product: rows are sorted by product, and every product has at least one.
        self.starts_P = np.searchsorted(self.records.product_of_row_R, np.arange(self.records.num_products))
        self.tombstones = Tombstones(self.records.num_products)

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
        return self.records.num_rows

    def embedding(self, row: int) -> np.ndarray:
        """(D,) float32 of unit length; from its code where no vectors are stored."""
        if self.vectors_ND is None:
            assert self.codes is not None, "a partition without codes stores its vectors"
            vector = self.codes.decoded(row)
        else:
            vector = self.vectors_ND[row].astype(np.float32)
        return np.asarray(vector / np.linalg.norm(vector))

    def search(
        self, queries_QD: np.ndarray, k: int, nprobe: int | None = None, probes: Probes | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest crops: (Q, k) float32 cosines, exact after refinement, best first, and (Q, k) int64 rows (-1 = none).

        `probes`: of these queries, where several shards are asked.
        """
        if self.codes is None:
            assert self.vectors_ND is not None
            return exact_search(queries_QD, self.vectors_ND, k)
        every_Q = np.arange(len(queries_QD))
        scores_QF, rows_QF = self._candidates(
            probes or Probes(queries_QD), every_Q, k, k * self.spec.refine_factor, nprobe or self.spec.nprobe, None
        )
        missing = ((0, 0), (0, k - rows_QF.shape[1]))  # of a k larger than the shard
        return np.pad(scores_QF, missing, constant_values=NONE_SCORE), np.pad(rows_QF, missing, constant_values=-1)

    def search_products(
        self,
        queries_QD: np.ndarray,
        k: int,
        allowed_P: np.ndarray | None = None,
        nprobe: int | None = None,
        *,
        exact: bool = False,
        probes: Probes | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest distinct products by their best crop: (Q, k) cosines, best first, and (Q, k) rows of those crops.

        `allowed_P`: bool, which products may come back; deleted ones never do. Fewer than k (-inf and -1 in their place) only
        where the shard has no more of them: the index is asked for more candidates, from more lists, until there are k or
        everything was seen. The fewer a filter leaves, the more lists are looked at from the start. `exact`: everything is
        looked at, by its stored vectors. `probes`: of these queries, where several shards are asked.
        """
        scores_QK = np.full((len(queries_QD), k), NONE_SCORE, np.float32)
        rows_QK = np.full((len(queries_QD), k), -1, np.int64)
        allowed_P = self.tombstones.without_deleted(allowed_P)
        num_products = self.records.num_products if allowed_P is None else int(allowed_P.sum())
        if num_products == 0:
            return scores_QK, rows_QK
        if self.codes is None:
            block = max(FLAT_BLOCK // self.num_rows, 1)
            for start in range(0, len(queries_QD), block):
                part = slice(start, start + block)
                self._scan_products(queries_QD[part], allowed_P, scores_QK[part], rows_QK[part])
            return scores_QK, rows_QK
        selected = None if allowed_P is None else allowed_P[self.records.product_of_row_R]
        num_rows = self.num_rows if selected is None else int(selected.sum())
        fetch, nprobe = widened(k * self.spec.refine_factor, nprobe or self.spec.nprobe, num_rows / self.num_rows)
        keep = min(fetch, KEPT * k)
        probes, todo = probes or Probes(queries_QD), np.arange(len(queries_QD))
        while todo.size:
            everything = exact or num_rows <= max(fetch, SCAN_ROWS if selected is not None else 0)
            if everything:
                scores_QF, found_QF = self._all(probes, todo, selected, num_rows)
            else:
                scores_QF, found_QF = self._candidates(probes, todo, keep, fetch, nprobe, selected)
            scores_QK[todo], rows_QK[todo] = distinct_top_k(scores_QF, found_QF, self.records.product_of_row_R, k)
            if everything:
                break
            todo = todo[(rows_QK[todo] >= 0).sum(axis=1) < min(k, num_products)]
            if keep == fetch:
                fetch, nprobe = fetch * WIDEN, nprobe * WIDEN
            keep = fetch
        return scores_QK, rows_QK

    def _scan_products(
        self, queries_QD: np.ndarray, allowed_P: np.ndarray | None, scores_QK: np.ndarray, rows_QK: np.ndarray
    ) -> None:
        """Exact: every crop is scored, the best one of each product kept. Fills `scores_QK` and `rows_QK`."""
        assert self.vectors_ND is not None
        scores_QN = np.concatenate([chunk for _, chunk in scan(queries_QD, self.vectors_ND)], axis=1)
        best_QP = np.maximum.reduceat(scores_QN, self.starts_P, axis=1)
        products = np.arange(best_QP.shape[1]) if allowed_P is None else np.flatnonzero(allowed_P)
        ends = np.append(self.starts_P[1:], self.num_rows)
        for q, best_P in enumerate(best_QP):
            chosen = products[np.argsort(-best_P[products], kind="stable")[: scores_QK.shape[1]]]
            scores_QK[q, : len(chosen)] = best_P[chosen]
            rows_QK[q, : len(chosen)] = [self.starts_P[p] + scores_QN[q, self.starts_P[p] : ends[p]].argmax() for p in chosen]

    def _candidates(
        self, probes: Probes, chosen_Q: np.ndarray, keep: int, fetch: int, nprobe: int, selected: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `keep` of `fetch` rows that look near by their codes, re-scored: (Q, keep) cosines and rows, best first.

        `chosen_Q`: places of the queries in their batch.
        """
        assert self.codes is not None
        fetch = min(max(fetch, keep), self.num_rows)
        keep = min(keep, fetch)
        scores_QF, rows_QF = self.codes.search(probes, chosen_Q, keep if self.vectors_ND is None else fetch, nprobe, selected)
        if self.vectors_ND is not None:
            scores_QF = self.vectors_ND.cosines(probes.queries_QD[chosen_Q], rows_QF)
        if selected is not None and self.codes.lists is None:
            rows_QF = np.where(selected[rows_QF], rows_QF, -1)  # these codes take no filter
        return best_k(np.where(rows_QF >= 0, np.clip(scores_QF, -1.0, 1.0), NONE_SCORE), rows_QF, keep)

    def _all(
        self, probes: Probes, chosen_Q: np.ndarray, selected: np.ndarray | None, num_rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every row that may come back, scored by its stored vector, or by its code where there is none."""
        if self.vectors_ND is None:
            assert self.codes is not None
            num_lists = self.codes.lists.nlist if self.codes.lists else 1
            return self._candidates(probes, chosen_Q, num_rows, num_rows, num_lists, selected)
        queries_QD = probes.queries_QD[chosen_Q]
        rows = np.arange(self.num_rows) if selected is None else np.flatnonzero(selected)
        scores_QN = np.concatenate(
            [cosines(queries_QD, self.vectors_ND[rows[i : i + CHUNK_ROWS]]) for i in range(0, len(rows), CHUNK_ROWS)], axis=1
        )
        order = np.argsort(-scores_QN, axis=1, kind="stable")
        return np.take_along_axis(scores_QN, order, 1), rows[order]


def widened(fetch: int, nprobe: int, selected_frac: float) -> tuple[int, int]:
    """Candidates to re-score, and lists to look at, where only a share of the rows may come back.

    The nearest of those are farther away, where codes tell less, and lie in farther lists. What this keeps of the recall at 50,
    10 and 1 % of the rows is measured by evaluate_index.
    """
    return math.ceil(fetch / selected_frac), math.ceil(nprobe / math.sqrt(selected_frac))


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
        OpenShard(
            entry.path,
            part.name,
            entry.bucket,
            Shard.open(folder / entry.path, part.spec.of_shard(len(part.shards)), manifest.bundle.dim),
        )
        for part, entry in manifest.shards()
        if paths is None or entry.path in paths
    ]


def delete_products(shards: Sequence[OpenShard], product_ids: Iterable[str]) -> int:
    """From now on these products never come back from the shards (see serve.index.tombstones); how many of them there were."""
    num_deleted = 0
    for product_id in product_ids:
        for opened in shards:
            product = opened.shard.records.find(product_id)
            if product is not None:
                opened.shard.tombstones.delete([product])
                num_deleted += 1
    return num_deleted
