"""An open release: its shards, its hash tables and its products, memory-mapped.

Three parts that open apart, so that a searcher process maps only the vectors of its shards and an ingress only the hash
tables and the products: `ShardGroup`, `HashStage`, `ProductStore`. `Release` is all three in one process (jobs, tests).
Everything returned is plain data that pickles small. Letters: G partitions, Q queries, D width, K neighbours.
"""

import bisect
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import faiss
import numpy as np

from serve.index.codes import Probes
from serve.index.filters import Filters, allowed_among
from serve.index.hash_stage import HashMatch, HashStage
from serve.index.manifest import Manifest, ReleaseError, read_manifest, verify_release
from serve.index.merge import merge_top_k
from serve.index.partition import Partition
from serve.index.records import bucket_of
from serve.index.shard import OpenShard, Shard, delete_products, open_shards
from serve.vision.hash import Fingerprint

__all__ = [
    "Candidate",
    "Filters",
    "HashMatch",
    "HashStage",
    "ProductStore",
    "Release",
    "ShardGroup",
    "assign_shards",
    "merge_candidates",
]

ZERO_LENGTH = 1e-6  # a query shorter than this has no direction
Box = tuple[float, float, float, float]


class Candidate(NamedTuple):
    """One product found for one query crop, by its best crop."""

    product_id: str
    score: float  # cosine of query and stored embedding, exact
    image_id: str
    crop: int
    box: Box  # pixels of the upright stored image: x0, y0, x1, y1
    category: str | None  # of the product in the catalog
    image_uri: str
    shard: str  # path of its shard in the release
    product: int = -1  # its row in products.arrow of that shard; -1 = in no shard


def check_queries(embeddings_QD: np.ndarray, dim: int) -> np.ndarray:
    """The queries as float32 of unit length. Raises ReleaseError for another width, NaN, inf or zero vectors."""
    if embeddings_QD.ndim != 2 or embeddings_QD.shape[1] != dim:
        raise ReleaseError(f"query embeddings of shape {embeddings_QD.shape}; this release takes (queries, {dim})")
    queries_QD = np.ascontiguousarray(embeddings_QD, np.float32)
    lengths_Q1 = np.linalg.norm(queries_QD, axis=1, keepdims=True)
    if not np.isfinite(lengths_Q1).all() or (lengths_Q1 < ZERO_LENGTH).any():
        raise ReleaseError("a query embedding is NaN, infinite or zero; it has no neighbours")
    return np.asarray(queries_QD / lengths_Q1)


class ShardGroup:
    """Some shards of a release, open for vector search. One deployment holds one group. Safe to share between threads."""

    def __init__(self, shards: Sequence[OpenShard], dim: int, threads: int) -> None:
        """Opens the codes of the shards. Raises ReleaseError for a missing or damaged index file."""
        self.dim, self.threads = dim, threads
        of_partition: dict[str, list[OpenShard]] = {}
        for opened in shards:
            of_partition.setdefault(opened.partition, []).append(opened)
        self.shards = [opened for group in of_partition.values() for opened in group]
        self.partitions = {
            name: Partition([opened.shard for opened in group], group[0].shard.spec, min(len(group) / group[0].num_shards, 1.0))
            for name, group in of_partition.items()
        }
        self.starts = np.cumsum([0, *(opened.shard.num_rows for opened in self.shards)])  # first row of each shard, and the end

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, shards: Collection[str] | None = None, threads: int = 1) -> Self:
        """Map the shards whose paths are in `shards` (none = all). Files are not verified here; see `verify_release`."""
        return cls(open_shards(folder, manifest, shards), manifest.bundle.dim, threads)

    @property
    def paths(self) -> tuple[str, ...]:
        """Shard paths in this group."""
        return tuple(opened.path for opened in self.shards)

    def search(
        self,
        embeddings_QD: np.ndarray,
        k: int,
        partitions: Collection[str] | None = None,
        filters: Filters | None = None,
        *,
        exact: bool = False,
    ) -> list[list[Candidate]]:
        """Per query the best k distinct products of these shards, best first (fewer when there are fewer).

        Embeddings are (Q, D) floats. Raises ReleaseError for another width, NaN, inf or zero vectors.
        `partitions`: names of those to search; none = all. `exact`: compare with every stored vector.
        """
        queries_QD = check_queries(embeddings_QD, self.dim)
        faiss.omp_set_num_threads(self.threads)  # OpenMP keeps this number per calling thread
        scores_GQK, rows_GQK, probes, start = [], [], Probes(queries_QD), 0
        for name, partition in self.partitions.items():
            if partitions is None or name in partitions:
                allowed_P = allowed_among([shard.records for shard in partition.shards], filters)
                scores_QK, rows_QK = partition.search_products(queries_QD, k, allowed_P, exact=exact, probes=probes)
                scores_GQK.append(scores_QK)
                rows_GQK.append(np.where(rows_QK >= 0, rows_QK + start, -1))
            start += partition.num_rows
        if not rows_GQK:
            return [[] for _ in queries_QD]
        # A product lives in one partition, so distinct products of each are distinct products of all.
        scores_QK, rows_QK = merge_top_k(np.stack(scores_GQK), np.stack(rows_GQK), k)
        return [
            [self._candidate(int(row), float(score)) for score, row in zip(scores_K, rows_K, strict=True) if row >= 0]
            for scores_K, rows_K in zip(scores_QK, rows_QK, strict=True)
        ]

    def delete(self, product_ids: Iterable[str]) -> int:
        """From now on these products never come back from this group (see serve.index.tombstones); how many of them it holds."""
        return delete_products(self.shards, product_ids)

    def _candidate(self, row: int, score: float) -> Candidate:
        """Row `row`, counted through over the group, in words."""
        place = bisect.bisect_right(self.starts, row) - 1
        opened, row = self.shards[place], row - int(self.starts[place])
        records = opened.shard.records
        image, product = int(records.image_of_row_R[row]), int(records.product_of_row_R[row])
        x0, y0, x1, y1 = (float(side[row]) for side in records.boxes)
        return Candidate(
            product_id=records.product_id(product),
            score=score,
            image_id=records.image_id(image),
            crop=int(records.crop_of_row_R[row]),
            box=(x0, y0, x1, y1),
            category=records.category(product),
            image_uri=records.image_uri(image),
            shard=opened.path,
            product=product,
        )


class ProductStore:
    """Attributes of every product of a release that is not deleted, looked up on disk by binary search."""

    def __init__(self, shards: Sequence[OpenShard], num_buckets: int) -> None:
        self.num_buckets = num_buckets
        self.by_path = {opened.path: opened.shard for opened in shards}
        self.by_bucket = [[opened for opened in shards if opened.bucket == bucket] for bucket in range(num_buckets)]

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, shards: Collection[str] | None = None) -> Self:
        """Map the products of `shards` (none = all)."""
        return cls(open_shards(folder, manifest, shards), manifest.num_buckets)

    def product(self, product_id: str, place: tuple[str, int] | None = None) -> dict[str, Any] | None:
        """Its columns of records.PRODUCTS, and image_id and image_uri; None when there is no such product.

        `place`: what `place(product_id)` says, where it is known.
        """
        place = place or self.place(product_id)
        return self.by_path[place[0]].records.attributes(place[1]) if place else None

    def embedding(self, product_id: str) -> np.ndarray | None:
        """(D,) float32 of the product's whole first photo; None when there is no such product."""
        found = self._find(product_id)
        if found is None:
            return None
        shard, product = found
        return shard.embedding(int(shard.records.crop_rows[shard.records.first_image(product)]))

    def photo_uri(self, product_id: str, image_id: str) -> str | None:
        """Where the product's photo `image_id` (hex) lies; None when the release has no such photo of it."""
        found = self._find(product_id)
        return found[0].records.photo_uri(found[1], image_id) if found else None

    def place(self, product_id: str) -> tuple[str, int] | None:
        """Path of the product's shard and its row in products.arrow; None when there is no such product."""
        for opened in self.by_bucket[bucket_of(product_id, self.num_buckets)]:
            product = opened.shard.records.find(product_id)
            if product is not None and not opened.shard.tombstones.deleted_P[product]:
                return opened.path, product
        return None

    def _find(self, product_id: str) -> tuple[Shard, int] | None:
        """The product's shard and its row in products.arrow."""
        place = self.place(product_id)
        return (self.by_path[place[0]], place[1]) if place else None


class Release:
    """One whole release in this process: manifest, hash stage, shards, products."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int = 1) -> None:
        """Maps every shard; `manifest` may be one that is not written yet (evaluate_index)."""
        shards = open_shards(folder, manifest, None)
        self.folder, self.manifest = folder, manifest
        self.group = ShardGroup(shards, manifest.bundle.dim, threads)
        self.hashes = HashStage(shards, manifest)
        self.products = ProductStore(shards, manifest.num_buckets)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True, threads: int = 1) -> Self:
        """Read the manifest, check every file against it unless `verify` is off, map everything. Raises ReleaseError."""
        manifest = read_manifest(folder)
        if verify:
            verify_release(folder, manifest)
        return cls(folder, manifest, threads)

    def hash_stage(self, fingerprint: Fingerprint, filters: Filters | None = None) -> HashMatch | None:
        """See HashStage.match."""
        return self.hashes.match(fingerprint, filters)

    def search(
        self,
        embeddings_QD: np.ndarray,
        k: int,
        partitions: Collection[str] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Candidate]]:
        """See ShardGroup.search."""
        return self.group.search(embeddings_QD, k, partitions, filters)

    def product(self, product_id: str) -> dict[str, Any] | None:
        """See ProductStore.product."""
        return self.products.product(product_id)

    def product_embedding(self, product_id: str) -> np.ndarray | None:
        """See ProductStore.embedding."""
        return self.products.embedding(product_id)


def assign_shards(manifest: Manifest, num_groups: int) -> list[tuple[str, ...]]:
    """Shard paths of each of `num_groups` groups, balanced by rows (largest first, to the lightest group); always the same."""
    groups: list[list[str]] = [[] for _ in range(num_groups)]
    rows = [0] * num_groups
    for _, entry in sorted(manifest.shards(), key=lambda pair: (-pair[1].num_rows, pair[1].path)):
        lightest = rows.index(min(rows))
        groups[lightest].append(entry.path)
        rows[lightest] += entry.num_rows
    return [tuple(group) for group in groups]


def merge_candidates(found: Sequence[Sequence[Candidate]], k: int) -> list[Candidate]:
    """Best k distinct products of several answers to one query, each by its best crop; equal scores by product_id."""
    best: dict[str, Candidate] = {}
    for candidate in (candidate for part in found for candidate in part):
        if candidate.product_id not in best or candidate.score > best[candidate.product_id].score:
            best[candidate.product_id] = candidate
    return sorted(best.values(), key=lambda candidate: (-candidate.score, candidate.product_id))[:k]
