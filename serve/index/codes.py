"""The codes of rows, in inverted lists (LSH: in none), and which lists a batch of queries looks at.

Letters: N rows, D width, Q queries, L lists looked at, F candidates.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.inspect_tools import get_invlist

from serve.index.manifest import ReleaseError

FAISS: Any = faiss  # its type stubs lack the keyword arguments of search parameters
SHORT_LIST_ROWS = 128  # mean length of the lists under which queries are answered one by one
QUERY_BY_QUERY = 11  # FAISS's IndexIVFFastScan.implem; by rule it takes 13, list by list for all queries of a batch
JOINED_LIST_ROWS = 1_024  # mean length of a shard's lists from which on joining them with others' would save less than 5 %


class Probes:
    """One batch of queries, and the lists nearest to each: looked up once for all codes that were filled from one template.

    Choosing lists takes a quarter of a search of a million rows (256 of 4,096), and a third of one of 125,000 (64 of 1,024).
    An object of one search: not for several threads.
    """

    def __init__(self, queries_QD: np.ndarray) -> None:
        self.queries_QD = queries_QD
        self.rotated_QD: dict[bytes, np.ndarray] = {}
        self.nearest: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, codes: "Codes", nprobe: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The queries as the codes take them (Q, D), their nearest lists (Q, L) int64, and the centroids' cosines (Q, L)."""
        if codes.template not in self.rotated_QD:
            self.rotated_QD[codes.template] = codes.rotated(self.queries_QD)
        rotated_QD, (scores_QL, lists_QL) = self.rotated_QD[codes.template], self.nearest.get(codes.template, (None, None))
        if lists_QL is None or lists_QL.shape[1] < nprobe:
            scores_QL, lists_QL = self.nearest[codes.template] = codes.lists.quantizer.search(rotated_QD, nprobe)
        assert scores_QL is not None
        return rotated_QD, lists_QL[:, :nprobe], scores_QL[:, :nprobe]


class Codes:
    """An opened index file. Searching is safe from several threads.

    Codes of 4 bits are read into memory, as FAISS keeps them in aligned tables; those of other kinds are mapped from disk.
    """

    def __init__(self, path: Path) -> None:
        """Damage is not noticed here: verify the release first. Raises ReleaseError for a missing file, FAISS's for another."""
        if not path.is_file():
            raise ReleaseError(f"{path}: missing from its shard; build the release again")
        self.index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        ivf = faiss.try_extract_index_ivf(self.index)
        self.lists: Any = None if ivf is None else faiss.downcast_index(ivf)
        chain: Any = self.index.chain if isinstance(self.index, faiss.IndexPreTransform) else None
        self.rotations: list[Any] = (
            [] if chain is None else [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]
        )
        self.in_memory = isinstance(self.lists, faiss.IndexIVFPQFastScan)
        self.template = b"" if self.lists is None else self._digest()
        self._choose_scan()

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def _digest(self) -> bytes:
        """Of what was trained: the rotation, the centroids and what they are divided into."""
        found = hashlib.blake2b(faiss.serialize_index(self.lists.quantizer).data, digest_size=16)
        for rotation in self.rotations:
            found.update(faiss.vector_to_array(rotation.A).data)
        if self.in_memory:
            found.update(faiss.vector_to_array(self.lists.pq.centroids).data)
        return found.digest()

    def _choose_scan(self) -> None:
        if self.in_memory:
            self.lists.implem = QUERY_BY_QUERY if len(self) < SHORT_LIST_ROWS * self.lists.nlist else 0

    def absorb(self, other: "Codes") -> None:
        """Take over another's lists, its rows after these: as if both had been filled into one. `other` is empty afterwards."""
        merge_lists(self.lists, other.lists)
        self.index.ntotal = self.lists.ntotal
        self._choose_scan()

    def rotated(self, queries_QD: np.ndarray) -> np.ndarray:
        """The queries as the lists and codes take them, (Q, D) float32."""
        for rotation in self.rotations:
            queries_QD = rotation.apply(queries_QD)
        return np.ascontiguousarray(queries_QD, np.float32)

    def search(
        self, probes: Probes, chosen_Q: np.ndarray, fetch: int, nprobe: int, selected_N: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is nearest by its code: (Q, F) float32 cosines as the codes have them and (Q, F) int64 rows, -1 = none.

        `chosen_Q`: places in the batch of the queries to answer. `selected_N`: bool, rows that may come back; LSH knows none.
        """
        if self.lists is None:
            bits_QF, rows_QF = self.index.search(probes.queries_QD[chosen_Q], fetch)
            return np.cos(np.pi * bits_QF / self.index.nbits), rows_QF  # the share of differing signs is the angle
        nprobe = min(nprobe, self.lists.nlist)
        rotated_QD, lists_QL, centroids_QL = (np.ascontiguousarray(part[chosen_Q]) for part in probes.of(self, nprobe))
        scores_QF = np.empty((len(chosen_Q), fetch), np.float32)
        rows_QF = np.empty((len(chosen_Q), fetch), np.int64)
        options: dict[str, Any] = {"nprobe": nprobe}
        if selected_N is not None:
            options["sel"] = FAISS.IDSelectorBitmap(np.packbits(selected_N, bitorder="little"))
        params = FAISS.SearchParametersIVF(**options)
        pointers = [faiss.swig_ptr(array) for array in (lists_QL, centroids_QL, scores_QF, rows_QF)]
        self.lists.search_preassigned_c(
            len(rotated_QD), faiss.swig_ptr(rotated_QD), fetch, *pointers, False, params, None
        )  # fmt: skip
        return scores_QF, rows_QF

    def decoded(self, row: int) -> np.ndarray:
        """(D,) float32, what the code of a row says of its vector; of codes in lists."""
        if self.lists.direct_map.no():
            self.lists.make_direct_map()  # 8 bytes a row, once
        return np.asarray(self.index.reconstruct(row), np.float32)


def merge_lists(into: Any, other: Any) -> None:
    """Move all rows of one index of lists to another's, numbered after its own; `other` is empty afterwards.

    FAISS (1.15.1) writes beyond its memory where a list of fast-scan blocks has a multiple of as many rows as a block has bytes:
    `BlockInvertedLists::add_entries` takes it for an empty one. Its blocks are full, so the other's are put after them here.
    """
    mine, theirs = (faiss.downcast_InvertedLists(lists.invlists) for lists in (into, other))
    if isinstance(mine, FAISS.BlockInvertedLists):
        for number in range(mine.nlist):
            size = mine.list_size(number)
            if size and size % mine.block_size == 0:
                rows, blocks = get_invlist(theirs, number)
                mine.resize(number, size + len(rows))
                start, end = size // mine.n_per_block * mine.block_size, mine.list_size(number)
                codes = faiss.rev_swig_ptr(mine.get_codes(number), start + blocks.size)
                codes[start:] = blocks.ravel()
                faiss.rev_swig_ptr(mine.get_ids(number), end)[size:] = rows + into.ntotal
                theirs.resize(number, 0)
    into.merge_from(other, into.ntotal)


def joined(opened: Sequence[Codes]) -> list[Codes]:
    """The codes of several shards as one, where they lie in memory, in short lists of one template; else as they are.

    Each list costs as much as fifty rows before the first of it is compared. Of 8 x 125,000 rows every list is 8 short ones: as
    one they are searched 1.5 times as fast, and they are joined in 0.4 to 0.6 s.
    """
    first, *others = opened
    for codes in opened:
        if not codes.in_memory or codes.template != first.template or len(codes) >= JOINED_LIST_ROWS * codes.lists.nlist:
            return list(opened)
    for other in others:
        first.absorb(other)
    return [first]
