"""The shards of one partition that a process holds, searched as one: candidates by codes, exact re-scoring, distinct products.

Rows and products are numbered through over the shards. A partition without codes is flat: every row is compared.
Letters: N rows, D width, Q queries, K neighbours, F candidates, P products.
"""

import math
from collections.abc import Sequence

import numpy as np

from serve.index.codes import Codes, Probes, joined
from serve.index.exact import CHUNK_ROWS, NONE_SCORE, Rows, best_k, cosines, exact_search, scan
from serve.index.manifest import PartitionSpec
from serve.index.merge import distinct_top_k
from serve.index.plan import FLAT
from serve.index.shard import Shard
from serve.index.vectors import JoinedVectors

KEPT = 4  # times k rows, best first, hold k products of most queries; all candidates are looked at where they do not
WIDEN = 4  # each further look fetches so many times more
FLAT_BLOCK = 2**24  # scores held at once by an exact scan
FLAT_RAM_BYTES = (
    2**26
)  # so small a flat partition is decoded once: that takes three times as long as comparing it with four queries
SCAN_ROWS = 2_048  # rows that a filter leaves: so few are scored exactly, in less time than lists are looked at


class Partition:
    """Open for search. Safe from several threads; each sets its own number of OpenMP threads."""

    def __init__(self, shards: Sequence[Shard], spec: PartitionSpec, share: float = 1.0) -> None:
        """`share`: of the partition's rows that these shards hold, others being searched elsewhere.

        Raises ReleaseError for a missing or damaged index file.
        """
        self.shards, self.spec, self.share = shards, spec, share
        self.row_starts = np.cumsum([0, *(shard.num_rows for shard in shards)])  # first row of each shard, and the end
        self.product_starts = np.cumsum([0, *(shard.records.num_products for shard in shards)])
        stored = [shard.vectors_ND for shard in shards if shard.vectors_ND is not None]
        self.vectors_ND = JoinedVectors(stored) if stored else None
        self.product_of_row_N = shards[0].records.product_of_row_R
        if len(shards) > 1:  # 4 bytes a row in memory; of one shard it is mapped
            parts = zip(shards, self.product_starts.astype(np.int32), strict=False)
            self.product_of_row_N = np.concatenate([shard.records.product_of_row_R + first for shard, first in parts])
        self.codes: list[Codes] = []
        if spec.factory == FLAT:
            assert self.vectors_ND is not None, "a partition without codes stores its vectors"
            is_small = 4 * self.num_rows * shards[0].dim <= FLAT_RAM_BYTES
            self.compared_ND: Rows = self.vectors_ND[:].astype(np.float32) if is_small else self.vectors_ND
            # Rows are sorted by product, and every product has at least one.
            self.starts_P = np.searchsorted(self.product_of_row_N, np.arange(self.num_products))
        else:
            self.codes = joined([shard.open_codes() for shard in shards])
        self.code_starts = np.cumsum([0, *map(len, self.codes)])

    @property
    def num_rows(self) -> int:
        return int(self.row_starts[-1])

    @property
    def num_products(self) -> int:
        return int(self.product_starts[-1])

    def search(self, queries_QD: np.ndarray, k: int, nprobe: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest crops: (Q, k) float32 cosines, exact after refinement, best first, and (Q, k) int64 rows (-1 = none)."""
        if not self.codes:
            return exact_search(queries_QD, self.compared_ND, k)
        every_Q, fetch = np.arange(len(queries_QD)), share_of(k * self.spec.refine_factor, self.share)
        scores_QF, rows_QF = self._candidates(Probes(queries_QD), every_Q, k, fetch, nprobe or self.spec.nprobe, None)
        if rows_QF.shape[1] == k:
            return scores_QF, rows_QF
        missing = ((0, 0), (0, k - rows_QF.shape[1]))  # of a k larger than the partition
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
        where there are no more of them: the index is asked for more candidates, from more lists, until there are k or
        everything was seen. The fewer a filter leaves, the more lists are looked at from the start. `exact`: everything is
        looked at, by its stored vectors. `probes`: of these queries, where several partitions are asked.
        """
        scores_QK = np.full((len(queries_QD), k), NONE_SCORE, np.float32)
        rows_QK = np.full((len(queries_QD), k), -1, np.int64)
        allowed_P = self._without_deleted(allowed_P)
        num_products = self.num_products if allowed_P is None else int(allowed_P.sum())
        if num_products == 0:
            return scores_QK, rows_QK
        if not self.codes:
            block = max(FLAT_BLOCK // self.num_rows, 1)
            for start in range(0, len(queries_QD), block):
                part = slice(start, start + block)
                self._scan_products(queries_QD[part], allowed_P, scores_QK[part], rows_QK[part])
            return scores_QK, rows_QK
        selected = None if allowed_P is None else allowed_P[self.product_of_row_N]
        num_rows = self.num_rows if selected is None else int(selected.sum())
        fetch = share_of(k * self.spec.refine_factor, self.share)
        fetch, nprobe = widened(fetch, nprobe or self.spec.nprobe, num_rows / self.num_rows)
        keep = min(fetch, KEPT * k)
        probes, todo = probes or Probes(queries_QD), np.arange(len(queries_QD))
        while todo.size:
            everything = exact or num_rows <= max(fetch, SCAN_ROWS if selected is not None else 0)
            if everything:
                scores_QF, found_QF = self._all(probes, todo, selected, num_rows)
            else:
                scores_QF, found_QF = self._candidates(probes, todo, keep, fetch, nprobe, selected)
            scores_QK[todo], rows_QK[todo] = distinct_top_k(scores_QF, found_QF, self.product_of_row_N, k)
            if everything:
                break
            todo = todo[(rows_QK[todo] >= 0).sum(axis=1) < min(k, num_products)]
            if keep == fetch:
                fetch, nprobe = fetch * WIDEN, nprobe * WIDEN
            keep = fetch
        return scores_QK, rows_QK

    def _without_deleted(self, allowed_P: np.ndarray | None) -> np.ndarray | None:
        """(P,) bool of the allowed products that are not deleted; None = all."""
        if not any(shard.tombstones.deleted_P.any() for shard in self.shards):
            return allowed_P
        kept_P = ~np.concatenate([shard.tombstones.deleted_P for shard in self.shards])
        return kept_P if allowed_P is None else kept_P & allowed_P

    def _scan_products(
        self, queries_QD: np.ndarray, allowed_P: np.ndarray | None, scores_QK: np.ndarray, rows_QK: np.ndarray
    ) -> None:
        """Exact: every crop is scored, the best one of each product kept. Fills `scores_QK` and `rows_QK`."""
        scores_QN = np.concatenate([chunk for _, chunk in scan(queries_QD, self.compared_ND)], axis=1)
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
        keep, looked = min(keep, self.num_rows), keep
        if self.vectors_ND is not None:
            looked = max(fetch, keep)
            looked = share_of(looked, 1 / len(self.codes)) if looked < self.num_rows else looked
        found = []
        for codes, first in zip(self.codes, self.code_starts, strict=False):
            of_these = None if selected is None else selected[first : first + len(codes)]
            scores_QF, rows_QF = codes.search(probes, chosen_Q, min(looked, len(codes)), nprobe, of_these)
            found.append((scores_QF, np.where(rows_QF >= 0, rows_QF + first, -1) if first else rows_QF))
        scores_QF, rows_QF = found[0] if len(found) == 1 else (np.concatenate(side, axis=1) for side in zip(*found, strict=True))
        if self.vectors_ND is not None:
            scores_QF = self.vectors_ND.cosines(probes.queries_QD[chosen_Q], rows_QF)
        if selected is not None and self.codes[0].lists is None:
            rows_QF = np.where(selected[rows_QF], rows_QF, -1)  # these codes take no filter
        return best_k(np.where(rows_QF >= 0, np.clip(scores_QF, -1.0, 1.0), NONE_SCORE), rows_QF, keep)

    def _all(
        self, probes: Probes, chosen_Q: np.ndarray, selected: np.ndarray | None, num_rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every row that may come back, scored by its stored vector, or by its code where there is none."""
        if self.vectors_ND is None:
            num_lists = max(codes.lists.nlist if codes.lists else 1 for codes in self.codes)
            return self._candidates(probes, chosen_Q, self.num_rows, self.num_rows, num_lists, selected)
        queries_QD = probes.queries_QD[chosen_Q]
        rows = np.arange(self.num_rows) if selected is None else np.flatnonzero(selected)
        scores_QN = np.concatenate(
            [cosines(queries_QD, self.vectors_ND[rows[i : i + CHUNK_ROWS]]) for i in range(0, len(rows), CHUNK_ROWS)], axis=1
        )
        order = np.argsort(-scores_QN, axis=1, kind="stable")
        return np.take_along_axis(scores_QN, order, 1), rows[order]


def share_of(fetch: int, share: float) -> int:
    """How many of the `fetch` nearest rows of a whole are looked for in a part that holds `share` of its rows.

    Rows are dealt by chance, so the part's number is a binomial one: its mean and twice its standard deviation are taken, and
    never more than all.
    """
    return min(math.ceil(fetch * share + 2 * math.sqrt(fetch * share * (1 - share))), fetch)


def widened(fetch: int, nprobe: int, selected_frac: float) -> tuple[int, int]:
    """Candidates to re-score, and lists to look at, where only a share of the rows may come back.

    The nearest of those are farther away, where codes tell less, and lie in farther lists. What this keeps of the recall at 50,
    10 and 1 % of the rows is measured by evaluate_index.
    """
    return math.ceil(fetch / selected_frac), math.ceil(nprobe / math.sqrt(selected_frac))
