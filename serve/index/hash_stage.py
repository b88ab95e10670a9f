"""The hash stage of a release: is this photo one of ours? Letters: S shards, C candidates, D width."""

from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from serve.index.filters import Filters, allowed_products
from serve.index.hash_exit import accept
from serve.index.hash_table import HashTable
from serve.index.manifest import Manifest, ReleaseError
from serve.index.shard import OpenShard, delete_products, open_shards
from serve.vision.hash import HASH_KIND, HASH_VERSION, Fingerprint, colour_distance


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


class HashStage:
    """Hashes and colours of a release: is this photo one of ours?"""

    def __init__(self, shards: Sequence[OpenShard], manifest: Manifest) -> None:
        kind = (manifest.hash.kind, manifest.hash.version)
        if kind != (HASH_KIND, HASH_VERSION):
            raise ReleaseError(f"release {manifest.release_id} has hashes {kind}, this code makes {(HASH_KIND, HASH_VERSION)}")
        self.exit = manifest.hash.exit
        self.shards = shards
        self.tables = [HashTable.open(opened.shard.folder, opened.shard.hashes_M32) for opened in shards]

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, shards: Collection[str] | None = None) -> Self:
        """Map the hash tables of `shards` (none = all). Raises ReleaseError for another kind of hash than this code makes."""
        return cls(open_shards(folder, manifest, shards), manifest)

    def beside(self, shards: Sequence[OpenShard]) -> Self:
        """This stage and those shards as one."""
        other = copy(self)
        other.shards = [*self.shards, *shards]
        other.tables = [*self.tables, *(HashTable.open(opened.shard.folder, opened.shard.hashes_M32) for opened in shards)]
        return other

    def delete(self, product_ids: Iterable[str]) -> None:
        """From now on these products are not found."""
        delete_products(self.shards, product_ids)

    def match(self, fingerprint: Fingerprint, filters: Filters | None = None) -> HashMatch | None:
        """The stored photo of a product that passes `filters` that the query photo is; None = go on with the vector stage."""
        if fingerprint.quality < self.exit.min_quality:
            return None
        shards_C, images_C, variants_C, distances_C, colours_C = [], [], [], [], []
        for number, (opened, table) in enumerate(zip(self.shards, self.tables, strict=True)):
            images, variants, distances = table.lookup(fingerprint.hashes, self.exit.max_distance)
            records = opened.shard.records
            allowed_P = allowed_products(records, filters) if images.size else None
            allowed_P = opened.shard.tombstones.without_deleted(allowed_P)
            if allowed_P is not None:
                kept = allowed_P[records.product_of_image[images]]
                images, variants, distances = images[kept], variants[kept], distances[kept]
            shards_C.append(np.full(len(images), number))
            images_C.append(images)
            variants_C.append(variants)
            distances_C.append(distances)
            colours_C.append(colour_distance(opened.shard.colours_M48[images], fingerprint.colours[variants]))
        if not shards_C:
            return None
        distances, colours = np.concatenate(distances_C), np.concatenate(colours_C)
        accepted = accept(self.exit, distances, colours, fingerprint.quality)
        if not accepted.size:
            return None
        shard_numbers, images, variants = (np.concatenate(parts) for parts in (shards_C, images_C, variants_C))
        products: dict[str, None] = {}
        for place in accepted:
            records = self.shards[shard_numbers[place]].shard.records
            products.setdefault(records.product_id(int(records.product_of_image[images[place]])))
        best = accepted[0]
        shard, image = self.shards[shard_numbers[best]].shard, int(images[best])
        return HashMatch(
            product_ids=tuple(products),
            image_id=shard.records.image_id(image),
            image_uri=shard.records.image_uri(image),
            category=shard.records.category(int(shard.records.product_of_image[image])),
            distance=int(distances[best]),
            colour_distance=float(colours[best]),
            variant=int(variants[best]),
            embedding=shard.embedding(int(shard.records.crop_rows[image])),
        )
