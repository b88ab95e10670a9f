"""The stored vectors of a shard, mapped from disk: what candidates are re-scored with, and what an embedding is read from.

    vectors.f16   (N, D) little-endian fp16
    vectors.sq8   (N, D) one byte a dimension, ranges.f32 (2, D): least value and span of each dimension
    norms.f32     (N,) length of each row as it is stored: rounding moves it, and a cosine divides it out; not beside flat

The raw bytes are FAISS's own codes (fp16 and 8-bit scalar quantizer).
Letters: N rows, D width, Q queries, F candidates of a query.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from serve.index.manifest import ReleaseError
from serve.index.plan import VECTOR_BYTES
from serve.index.spec import VectorKind

FILES = {"fp16": "vectors.f16", "sq8": "vectors.sq8"}
NORMS_FILE = "norms.f32"
RANGES_FILE = "ranges.f32"
RANGE_ROWS = 65_536  # that the ranges of sq8 are measured on
CHUNK_ROWS = 65_536  # 64 MB of float32 at D = 256


def map_rows(path: Path, dtype: type, width: int) -> np.ndarray:
    """The (N, width) array in a raw file, memory-mapped read-only. Raises ReleaseError where its size does not fit."""
    row_bytes = np.dtype(dtype).itemsize * width
    size = path.stat().st_size if path.is_file() else -1
    if size < 0 or size % row_bytes:
        raise ReleaseError(f"{path}: {'missing' if size < 0 else f'{size} bytes are no rows of {row_bytes}'}; build it again")
    if size == 0:
        return np.empty((0, width), dtype)
    return np.asarray(np.memmap(path, dtype, mode="r", shape=(size // row_bytes, width)))  # slices of a np.memmap are slow


class StoredVectors:
    """Rows that decode when they are looked at: `vectors[rows]` is (len(rows), D) float32 or fp16, of nearly unit length."""

    def __init__(self, folder: Path, kind: VectorKind, dim: int, *, norms: bool) -> None:
        """`norms`: the rows have their lengths beside, as those of an index have. Raises ReleaseError for a missing file."""
        self.codes_NB = map_rows(folder / FILES[kind], np.uint8, dim * VECTOR_BYTES[kind])
        self.shape = (len(self.codes_NB), dim)
        self.quantizer = make_quantizer(kind, dim)
        if kind == "sq8":
            ranges_2D = map_rows(folder / RANGES_FILE, np.float32, dim)
            faiss.copy_array_to_vector(np.ascontiguousarray(ranges_2D).ravel(), self.quantizer.sq.trained)
        self.quantizer.is_trained = True
        self.kind = kind
        self.norms_N = map_rows(folder / NORMS_FILE, np.float32, 1)[:, 0] if norms else None
        self.stored_ND = self.codes_NB.view(np.float16) if kind == "fp16" else self.codes_NB
        self.first_D, self.step_D = self._line()

    def _line(self) -> tuple[np.ndarray, np.ndarray]:
        """What a stored 0 stands for in each dimension, (D,) float32, and by how much each further 1 is more."""
        if self.kind == "fp16":
            return np.zeros(self.shape[1], np.float32), np.ones(self.shape[1], np.float32)
        first_D, last_D = self.quantizer.sa_decode(np.repeat(np.array([[0], [255]], np.uint8), self.shape[1], axis=1))
        return first_D, (last_D - first_D) / 255

    def __len__(self) -> int:
        return len(self.codes_NB)

    def __getitem__(self, rows: slice | np.ndarray | int) -> np.ndarray:
        codes = self.codes_NB[rows]
        if self.kind == "fp16":
            return np.ascontiguousarray(codes).view(np.float16)
        one = codes.ndim == 1
        decoded: np.ndarray = self.quantizer.sa_decode(np.ascontiguousarray(np.atleast_2d(codes)))
        return decoded[0] if one else decoded


class JoinedVectors:
    """The stored vectors of several shards of one kind, their rows numbered through: `vectors[rows]` as of one."""

    def __init__(self, parts: Sequence[StoredVectors]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])  # first row of each part, and the end
        self.norms_N = None
        if parts[0].norms_N is not None:  # mapped where there is one part, else 4 bytes a row
            self.norms_N = parts[0].norms_N if len(parts) == 1 else np.concatenate([part.norms_N for part in parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if len(self.parts) == 1:
            return self.parts[0][rows]
        chosen = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        places = self._places(chosen)
        found = np.empty((len(chosen), self.parts[0].shape[1]), np.float32)
        for place in np.unique(places):
            found[places == place] = self.parts[place][chosen[places == place] - self.starts[place]]
        return found

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Which part each row lies in; row -1 in the first."""
        places = np.zeros(rows.shape, np.uint16)
        for start in self.starts[1:-1]:
            places += rows >= start
        return places

    def cosines(self, queries_QD: np.ndarray, rows_QF: np.ndarray) -> np.ndarray:
        """(Q, F) float32 cosines of float32 queries and their candidates; of a row -1 a number that means nothing.

        A code is a straight line in each dimension, so a query is brought to the codes instead of each code to floats, and rows
        are fetched together: twice as fast as FAISS's refinement, which decodes one row after the other.
        """
        assert self.norms_N is not None, "opened without lengths"
        scores_QF = np.empty(rows_QF.shape, np.float32)
        for start in range(0, rows_QF.shape[1], CHUNK_ROWS):
            columns = slice(start, start + CHUNK_ROWS)
            if len(self.parts) == 1:
                scores_QF[:, columns] = self._dots(
                    queries_QD, rows_QF[:, columns], np.zeros(rows_QF[:, columns].shape, np.uint16)
                )
                continue
            places_QF = self._places(rows_QF[:, columns])
            order_QF = np.argsort(places_QF, axis=1, kind="stable")  # 16 bits: by radix
            rows_in_order_QF, places_QF = (np.take_along_axis(a, order_QF, 1) for a in (rows_QF[:, columns], places_QF))
            dots_QF = self._dots(queries_QD, rows_in_order_QF - self.starts[places_QF], places_QF)
            np.put_along_axis(scores_QF[:, columns], order_QF, dots_QF, 1)
        cosines_QF: np.ndarray = scores_QF / self.norms_N[rows_QF]
        return cosines_QF

    def _dots(self, queries_QD: np.ndarray, rows_QF: np.ndarray, places_QF: np.ndarray) -> np.ndarray:
        """(Q, F) dot products with candidates that come part by part: rows of the parts at `places_QF`."""
        dots_QF = np.empty(rows_QF.shape, np.float32)
        fetched_FD = np.empty((rows_QF.shape[1], queries_QD.shape[1]), self.parts[0].stored_ND.dtype)
        floats_FD = np.empty(fetched_FD.shape, np.float32)
        scaled_SQD = np.stack([queries_QD * part.step_D for part in self.parts])
        base_SQ = np.stack([queries_QD @ part.first_D for part in self.parts])
        firsts = np.arange(len(self.parts) + 1)
        for q, rows_F in enumerate(rows_QF):
            cuts = np.searchsorted(places_QF[q], firsts).tolist()
            for part, start, end in zip(self.parts, cuts, cuts[1:], strict=False):  # mode: the others would go through a copy
                np.take(part.stored_ND, rows_F[start:end], axis=0, out=fetched_FD[start:end], mode="clip")
            np.copyto(floats_FD, fetched_FD)
            for scaled_QD, start, end in zip(scaled_SQD, cuts, cuts[1:], strict=False):
                np.matmul(floats_FD[start:end], scaled_QD[q], out=dots_QF[q, start:end])
        dots_QF += base_SQ[places_QF, np.arange(len(queries_QD))[:, None]]
        return dots_QF


def make_quantizer(kind: VectorKind, dim: int) -> Any:
    """FAISS's codec of one kind, untrained."""
    scalar: Any = faiss.ScalarQuantizer
    return faiss.IndexScalarQuantizer(dim, scalar.QT_fp16 if kind == "fp16" else scalar.QT_8bit, faiss.METRIC_INNER_PRODUCT)


class VectorWriter:
    """Writes the files of `kind` below `folder`, chunk by chunk; "none" writes nothing."""

    def __init__(self, folder: Path, kind: VectorKind, dim: int, sample_ND: np.ndarray, *, norms: bool) -> None:
        """`sample_ND`: rows that the ranges of sq8 are measured on."""
        self.quantizer, self.files = None, []
        if kind == "none":
            return
        self.quantizer = make_quantizer(kind, dim)
        if kind == "sq8":
            self.quantizer.train(
                np.ascontiguousarray(sample_ND, np.float32) if len(sample_ND) else np.eye(2, dim, dtype=np.float32)
            )
            faiss.vector_to_array(self.quantizer.sq.trained).tofile(folder / RANGES_FILE)
        self.quantizer.is_trained = True
        self.files = [(folder / name).open("wb") for name in (FILES[kind], NORMS_FILE)[: 1 + norms]]

    def add(self, chunk_ND: np.ndarray) -> None:
        """The next rows, float32."""
        if self.quantizer is None:
            return
        codes_NB = self.quantizer.sa_encode(chunk_ND)
        self.files[0].write(codes_NB.data)
        if len(self.files) > 1:
            decoded_ND = self.quantizer.sa_decode(codes_NB)
            self.files[1].write(np.sqrt(np.einsum("nd,nd->n", decoded_ND, decoded_ND)).data)

    def close(self) -> None:
        """Everything is in the files."""
        for file in self.files:
            file.close()


def chunks(num_rows: int) -> Iterable[slice]:
    """Rows 0 to `num_rows` in order, CHUNK_ROWS at a time."""
    return (slice(start, min(start + CHUNK_ROWS, num_rows)) for start in range(0, num_rows, CHUNK_ROWS))
