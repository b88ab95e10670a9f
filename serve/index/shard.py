"""One shard: its vectors and its records, opened from disk without being read into memory. Searched by serve.index.partition.

    vectors.*     exact re-scoring, and the stored embeddings; see serve.index.vectors
    hashes.u8     (M, 32) and colours.u8 (M, 48): of the M photos of images.arrow; hashes.mih: see serve.index.hash_table
    hubness.f32   (P,) where the bundle has queries; see serve.index.hubness
    index.faiss   what candidates for re-scoring are found with, see serve.index.codes; missing in a flat partition
    *.arrow       see serve.index.records

Letters: N rows, D width, P products, M photos.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from serve.index.codes import Codes
from serve.index.exact import CHUNK_ROWS
from serve.index.hubness import HUBNESS_FILE
from serve.index.manifest import Manifest, PartitionSpec, ReleaseError
from serve.index.plan import FLAT
from serve.index.records import Records
from serve.index.tombstones import Tombstones
from serve.index.vectors import StoredVectors, map_rows
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES

INDEX_FILE = "index.faiss"
HASHES_FILE = "hashes.u8"
COLOURS_FILE = "colours.u8"
NORM_TOLERANCE = 0.01  # of a stored unit vector; fp16 rounding moves it by less than 0.001


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
    """An open shard, without its codes: whoever searches opens those, an ingress never."""

    def __init__(self, folder: Path, spec: PartitionSpec, dim: int) -> None:
        self.folder, self.spec, self.dim = folder, spec, dim
        self.records = Records(folder)
        self.vectors_ND = StoredVectors(folder, spec.vectors, dim, norms=spec.factory != FLAT) if spec.vectors != "none" else None
        self.hashes_M32 = map_rows(folder / HASHES_FILE, np.uint8, HASH_BYTES)
        self.colours_M48 = map_rows(folder / COLOURS_FILE, np.uint8, COLOUR_BYTES)
        hubs = folder / HUBNESS_FILE
        self.hubness_P = map_rows(hubs, np.float32, 1)[:, 0] if hubs.is_file() else None
        rows = {self.records.num_rows}
        rows |= {len(self.vectors_ND)} if self.vectors_ND is not None else set()
        photos = {len(self.hashes_M32), len(self.colours_M48), self.records.images.num_rows}
        if len(rows) > 1 or len(photos) > 1:
            raise ReleaseError(f"{folder}: its files disagree on the number of rows {rows} or photos {photos}; build it again")
        if self.hubness_P is not None and len(self.hubness_P) != self.records.num_products:
            raise ReleaseError(f"{hubs}: of {len(self.hubness_P)} products, not {self.records.num_products}; build it again")
        self.tombstones = Tombstones(self.records.num_products)

    @classmethod
    def open(cls, folder: Path, spec: PartitionSpec, dim: int) -> "Shard":
        """The shard in `folder`, memory-mapped. Raises ReleaseError, naming the file."""
        try:
            return cls(folder, spec, dim)
        except (OSError, RuntimeError, ValueError) as error:  # Arrow's and FAISS's own
            if isinstance(error, ReleaseError):
                raise
            raise cannot_open(folder, error) from error

    @property
    def num_rows(self) -> int:
        return self.records.num_rows

    def open_codes(self) -> Codes:
        """Those of index.faiss, which a flat shard lacks. Raises ReleaseError for a missing or damaged file."""
        path = self.folder / INDEX_FILE
        try:
            codes = Codes(path)
        except RuntimeError as error:  # FAISS's own
            raise cannot_open(path, error) from error
        if len(codes) != self.num_rows:
            raise ReleaseError(f"{path}: {len(codes)} rows, its shard has {self.num_rows}; build it again")
        return codes

    @cached_property
    def _decoder(self) -> Codes:
        return self.open_codes()

    def embedding(self, row: int) -> np.ndarray:
        """(D,) float32 of unit length; from its code where no vectors are stored."""
        vector = self._decoder.decoded(row) if self.vectors_ND is None else self.vectors_ND[row].astype(np.float32)
        return np.asarray(vector / np.linalg.norm(vector))


def cannot_open(path: Path, error: Exception) -> ReleaseError:
    """What a reader's own error comes to."""
    return ReleaseError(f"{path}: can't be opened ({' '.join(str(error).split())[:200]}); build it again")


@dataclass(frozen=True)
class OpenShard:
    """A shard and its place in the release."""

    path: str
    partition: str
    bucket: int
    shard: Shard
    num_shards: int = 1  # of the partition, in all of the release


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
            Shard.open(folder / entry.path, part.spec, manifest.bundle.dim),
            len(part.shards),
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
