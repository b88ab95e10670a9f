"""Products deleted since a shard was built: a bitmap beside it, so that deleting costs one bit and no rewriting.

A release never changes; the file lies where its owner keeps what is fresh. `compact_shard` writes a shard without them.
Letters: P products of the shard.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from serve.index.manifest import ReleaseError, write_durably


class Tombstones:
    """Which products of one shard are deleted."""

    def __init__(self, num_products: int) -> None:
        self.deleted_P = np.zeros(num_products, bool)

    def __copy__(self) -> "Tombstones":
        other = Tombstones(0)
        other.deleted_P = self.deleted_P.copy()
        return other

    @classmethod
    def load(cls, path: Path, num_products: int) -> Self:
        """As `save` wrote it; none where there is no file. Raises ReleaseError for those of another shard."""
        found = cls(num_products)
        if path.is_file():
            bits = np.frombuffer(path.read_bytes(), np.uint8)
            if len(bits) != -(-num_products // 8):
                raise ReleaseError(f"{path}: {len(bits)} bytes for {num_products} products; it belongs to another shard")
            found.deleted_P[:] = np.unpackbits(bits, count=num_products, bitorder="little")
        return found

    def save(self, path: Path) -> None:
        """In one step, durably."""
        write_durably(path, np.packbits(self.deleted_P, bitorder="little").tobytes())

    def delete(self, products: Iterable[int]) -> None:
        """Rows of products.arrow that must not come back."""
        self.deleted_P[list(products)] = True

    @property
    def num_deleted(self) -> int:
        return int(self.deleted_P.sum())

    def without_deleted(self, allowed_P: np.ndarray | None) -> np.ndarray | None:
        """(P,) bool of the allowed products that are not deleted; None = all."""
        if not self.deleted_P.any():
            return allowed_P
        return ~self.deleted_P if allowed_P is None else allowed_P & ~self.deleted_P
