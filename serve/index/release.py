"""An open release: its shards, its hash tables and its products, memory-mapped.

Three parts that open apart, so that a searcher process maps only the vectors of its shards and an ingress only the hash
tables and the products: `ShardGroup`, `HashStage`, `ProductStore`. `Release` is all three in one process (jobs, tests).
Everything returned is plain data that pickles small.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serve.index.manifest import Manifest
from serve.vision.hash import Fingerprint


class Candidate(NamedTuple):
    """One product found for one query crop, by its best crop."""

    product_id: str
    score: float  # cosine of query and stored embedding, exact
    image_id: str
    crop: int
    box: tuple[float, float, float, float]  # pixels of the upright stored image: x0, y0, x1, y1
    category: str | None  # of the product in the catalog
    image_uri: str
    shard: str  # path of its shard in the release


@dataclass(frozen=True)
class Filters:
    """Which products may be answered; none = all. Strings compare exactly, `category` as a path prefix."""

    price_min: float | None = None
    price_max: float | None = None
    gender: str | None = None
    brand: str | None = None
    available: bool | None = None
    category: str | None = None
    without: frozenset[str] = frozenset()  # product ids that must not come back, such as those deleted since the build


@dataclass(frozen=True)
class HashMatch:
    """A stored photo that is the query photo."""

    product_ids: tuple[str, ...]  # those that own an accepted photo, best first
    image_id: str  # of the best
    image_uri: str
    category: str | None
    distance: int  # of 256 bits
    colour_distance: float
    variant: int  # dihedral variant of the query under which it was found
    embedding: np.ndarray  # (D,) float32, crop 0 of the best


class ShardGroup:
    """Some shards of a release, open for vector search. One deployment holds one group."""

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, shards: Collection[str] | None = None, threads: int = 1) -> "ShardGroup":
        """Map the shards whose paths are in `shards` (none = all). Files are not verified here; see `verify_release`."""
        raise NotImplementedError

    @property
    def paths(self) -> tuple[str, ...]:
        """Shard paths in this group."""
        raise NotImplementedError

    def search(
        self,
        embeddings_QD: np.ndarray,
        k: int,
        partitions: Collection[str] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Candidate]]:
        """Per query the best k distinct products of these shards, best first (fewer when there are fewer).

        Embeddings are float32 (Q, D), unit length. Raises ReleaseError for another width, NaN, inf or zero vectors.
        `partitions`: names of those to search; none = all.
        """
        raise NotImplementedError

    def product_embedding(self, product_id: str) -> np.ndarray | None:
        """(D,) float32 of the whole first photo; None when the product is in none of these shards."""
        raise NotImplementedError


class HashStage:
    """Hashes and colours of a release: is this photo one of ours?"""

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, shards: Collection[str] | None = None) -> "HashStage":
        """Map the hash tables of `shards` (none = all)."""
        raise NotImplementedError

    def match(self, fingerprint: Fingerprint, without: Collection[str] = ()) -> HashMatch | None:
        """The stored photo that the query photo is, by the calibrated exit; None = go on with the vector stage."""
        raise NotImplementedError


class ProductStore:
    """Attributes of every product of a release, looked up on disk by binary search."""

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, shards: Collection[str] | None = None) -> "ProductStore":
        """Map the products of `shards` (none = all)."""
        raise NotImplementedError

    def product(self, product_id: str) -> dict[str, Any] | None:
        """title, category, price, currency, available, stock, gender, brand, color, group_id, popularity, image_uri."""
        raise NotImplementedError

    def embedding(self, product_id: str) -> np.ndarray | None:
        """(D,) float32 of the product's whole first photo; None when there is no such product."""
        raise NotImplementedError


class Release:
    """One whole release in this process: manifest, hash stage, shards, products."""

    folder: Path
    manifest: Manifest
    group: ShardGroup
    hashes: HashStage
    products: ProductStore

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True, threads: int = 1) -> "Release":
        """Read the manifest, check every file against it unless `verify` is off, map everything. Raises ReleaseError."""
        raise NotImplementedError

    def hash_stage(self, fingerprint: Fingerprint) -> HashMatch | None:
        """See HashStage.match."""
        raise NotImplementedError

    def search(
        self,
        embeddings_QD: np.ndarray,
        k: int,
        partitions: Collection[str] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Candidate]]:
        """See ShardGroup.search."""
        raise NotImplementedError

    def product(self, product_id: str) -> dict[str, Any] | None:
        """See ProductStore.product."""
        raise NotImplementedError

    def product_embedding(self, product_id: str) -> np.ndarray | None:
        """See ProductStore.embedding."""
        raise NotImplementedError


def assign_shards(manifest: Manifest, num_groups: int) -> list[tuple[str, ...]]:
    """Shard paths of each of `num_groups` groups, balanced by rows; the same answer on every process."""
    raise NotImplementedError


def merge_candidates(found: Sequence[Sequence[Candidate]], k: int) -> list[Candidate]:
    """Best k distinct products of several shard groups' answers to one query."""
    raise NotImplementedError
