"""What the catalog says about the results of a search, column by column.

Letters: N results, M of one shard.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from serve.index.records import PRODUCTS
from serve.index.release import ProductStore
from serve.index.search import Result
from serve.index.shard import Shard
from serve.ranking.candidates import COLUMNS, Candidates
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES

Place = tuple[str, int]  # shard path, row in products.arrow


class Shelf:
    """Products of one release, and those that came after it."""

    def __init__(self, *stores: ProductStore) -> None:
        """The first store that has a product counts."""
        self.stores = stores
        self.shards: Mapping[str, Shard] = ChainMap(*(store.by_path for store in stores))

    @property
    def knows_hubness(self) -> bool:
        """Whether the rule `hubness` can do anything."""
        return any(shard.hubness_P is not None for shard in self.shards.values())

    def place(self, result: Result) -> Place:
        """Where the product lies."""
        if result.place is not None:
            return result.place
        found = next((place for store in self.stores if (place := store.place(result.product_id))), None)
        assert found is not None, "a result is of the release, or of what came after it"
        return found

    def holds(self, result: Result) -> bool:
        """Whether it is known where the product lies: one may be deleted while a query is answered."""
        return result.place is not None or any(store.place(result.product_id) for store in self.stores)

    def candidates(self, results: Sequence[Result], *, pictures: bool) -> Candidates:
        """Results as columns, in their order; with `pictures` the hashes and colours of their first photos as well."""
        places = [self.place(result) for result in results]
        visual_N = np.fromiter((result.score for result in results), np.float64, len(results))
        exact_N = np.fromiter((result.match == "exact" for result in results), bool, len(results))
        hashes_N32, colours_N48 = fingerprints(self.shards, places) if pictures else (None, None)
        hubness_N = hubness(self.shards, places) if self.knows_hubness else None
        return Candidates(visual_N, exact_N, columns(self.shards, places), hashes_N32, colours_N48, hubness_N)


def columns(shards: Mapping[str, Shard], places: Sequence[Place]) -> pa.Table:
    """COLUMNS of records.PRODUCTS at `places`, in that order."""
    if not places:
        return PRODUCTS.empty_table().select(COLUMNS)
    parts, where = [], []
    for path, where_M, rows_M in by_shard(places):
        parts.append(shards[path].records.products.select(COLUMNS).take(pa.array(rows_M)))
        where.append(where_M)
    order = np.argsort(np.concatenate(where))
    return pa.Table.from_batches(parts).combine_chunks().take(pa.array(order))


def hubness(shards: Mapping[str, Shard], places: Sequence[Place]) -> np.ndarray | None:
    """(N,) float64 of the products at `places`; NaN where the shard says nothing of it, None where no shard does."""
    hubness_N = np.full(len(places), np.nan)
    for path, where_M, rows_M in by_shard(places):
        if (hubness_P := shards[path].hubness_P) is not None:
            hubness_N[where_M] = hubness_P[rows_M]
    return None if np.isnan(hubness_N).all() else hubness_N


def fingerprints(shards: Mapping[str, Shard], places: Sequence[Place]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (N, 32) and colours (N, 48), uint8, of the first photos of the products at `places`."""
    hashes_N32 = np.empty((len(places), HASH_BYTES), np.uint8)
    colours_N48 = np.empty((len(places), COLOUR_BYTES), np.uint8)
    for path, where_M, rows_M in by_shard(places):
        shard = shards[path]
        images_M = np.searchsorted(shard.records.product_of_image, rows_M.astype(np.int32))  # of one type: nothing is copied
        hashes_N32[where_M], colours_N48[where_M] = shard.hashes_M32[images_M], shard.colours_M48[images_M]
    return hashes_N32, colours_N48


def by_shard(places: Sequence[Place]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of each shard: its path, which of `places` lie in it, and their rows."""
    rows_N = np.fromiter((row for _, row in places), np.int64, len(places))
    members: dict[str, list[int]] = {}
    for place, (path, _) in enumerate(places):
        members.setdefault(path, []).append(place)
    for path, where in members.items():
        yield path, np.asarray(where), rows_N[where]
