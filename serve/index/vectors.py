"""The stored vectors of a shard, mapped from disk: what candidates are re-scored with, and what an embedding is read from.

    vectors.f16   (N, D) little-endian fp16
    vectors.sq8   (N, D) one byte a dimension, ranges.f32 (2, D): least value and span of each dimension
    norms.f32     (N,) length of each row as it is stored: rounding moves it, and a cosine divides it out; not beside flat

The raw bytes are FAISS's own codes (fp16 and 8-bit scalar quantizer), so its refinement reads them where they lie.
Letters: N rows, D width.
"""

from collections.abc import Iterable
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

    def __init__(self, folder: Path, kind: VectorKind, dim: int) -> None:
        self.codes_NB = map_rows(folder / FILES[kind], np.uint8, dim * VECTOR_BYTES[kind])
        self.shape = (len(self.codes_NB), dim)
        self.quantizer = make_quantizer(kind, dim)
        if kind == "sq8":
            ranges_2D = map_rows(folder / RANGES_FILE, np.float32, dim)
            faiss.copy_array_to_vector(np.ascontiguousarray(ranges_2D).ravel(), self.quantizer.sq.trained)
        self.quantizer.is_trained = True
        self.kind, self.folder = kind, folder

    def norms(self) -> np.ndarray:
        """(N,) float32, of a shard that has an index."""
        return map_rows(self.folder / NORMS_FILE, np.float32, 1)[:, 0]

    def __len__(self) -> int:
        return len(self.codes_NB)

    def __getitem__(self, rows: slice | np.ndarray | int) -> np.ndarray:
        codes = self.codes_NB[rows]
        if self.kind == "fp16":
            return np.ascontiguousarray(codes).view(np.float16)
        one = codes.ndim == 1
        decoded: np.ndarray = self.quantizer.sa_decode(np.ascontiguousarray(np.atleast_2d(codes)))
        return decoded[0] if one else decoded

    def refiner(self) -> Any:
        """A FAISS index over the mapped codes, without a copy; it must not outlive this object."""
        index, codes = make_quantizer(self.kind, self.shape[1]), self.codes_NB.reshape(-1)
        view: Any = faiss.MaybeOwnedVectorUInt8()
        view.is_owned, view.view_size, view.c_size = False, codes.size, codes.size
        view.view_data = view.c_ptr = faiss.swig_ptr(codes)
        index.sq.trained, index.is_trained = self.quantizer.sq.trained, True
        index.codes, index.ntotal = view, len(self.codes_NB)
        return index


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
