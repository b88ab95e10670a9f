"""Changes that came over HTTP after a release was built: rows of the table `inserts`, and the small shards made of the newest.

A row is the whole product after the change, with the features of its photos, so that whoever reads it needs nothing else.
"""

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from serve.index.compact import rows_of_shard
from serve.index.filters import Filters
from serve.index.manifest import PartitionSpec
from serve.index.records import PRODUCTS
from serve.index.release import Candidate, ProductStore, ShardGroup
from serve.index.shard import OpenShard, Shard
from serve.index.writer import write_shard

INSERTS_TABLE = "inserts"
FRESH = "fresh"  # stands where others have the path of a shard
MOST_PARTS = 8  # shards of what is fresh; what comes then is written into one with all before
PUT, CHANGE, DELETE = "put", "change", "delete"  # put: with a photo; change: of attributes alone
Row = dict[str, Any]

CROP = pa.struct(
    [
        pa.field("position", pa.int32()),
        pa.field("image_uri", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("crop", pa.int32()),
        *(pa.field(side, pa.float32()) for side in ("x0", "y0", "x1", "y1")),
        pa.field("embedding", pa.binary()),  # fp16
        pa.field("hash", pa.binary()),  # of crop 0
        pa.field("colour", pa.binary()),
    ]
)
ATTRIBUTES = tuple(name for name in PRODUCTS.names if name not in ("product_id", "updated_at"))
INSERTS = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("at", pa.int64(), nullable=False),  # microseconds since 1970, later than every change its writer had seen
        pa.field("kind", pa.string(), nullable=False),
        pa.field("bundle_digest", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        *(pa.field(name, PRODUCTS.field(name).type) for name in ATTRIBUTES),
        pa.field("crops", pa.list_(CROP)),  # of every photo; none = deleted
    ]
)
EMPTY = dict.fromkeys(("description", *ATTRIBUTES))


def newest(rows: Iterable[Row], known: Mapping[str, Row] | None = None) -> dict[str, Row]:
    """The latest row of each product, among `rows` and those `known` before."""
    found = dict(known or {})
    for row in rows:
        if row["product_id"] not in found or row["at"] > found[row["product_id"]]["at"]:
            found[row["product_id"]] = row
    return found


def row_of(store: ProductStore, product_id: str, bundle_digest: str) -> Row | None:
    """A product of a release as a row of `inserts` would say it; None when there is no such product."""
    place = store.place(product_id)
    if place is None:
        return None
    shard = store.by_path[place[0]]
    chosen_P = np.zeros(shard.records.num_products, bool)
    chosen_P[place[1]] = True
    crops, products = rows_of_shard(shard, chosen_P)
    attributes = {name: products[name][0].as_py() for name in ATTRIBUTES}
    photos = crops.drop_columns(["product_id"]).to_pylist()
    return {"product_id": product_id, "bundle_digest": bundle_digest, "description": None, **attributes, "crops": photos}


@dataclass(frozen=True)
class Fresh:
    """The newest rows, open for search: immutable, another one is made when something changes."""

    rows: Mapping[str, Row]  # of every product that was changed after the release, deleted ones too
    shards: tuple[OpenShard, ...]  # the newest first; what later ones replace is deleted in the others
    group: ShardGroup = field(init=False)
    products: ProductStore = field(init=False)

    def __post_init__(self) -> None:
        dim = self.shards[0].shard.dim if self.shards else 0
        object.__setattr__(self, "group", ShardGroup(self.shards, dim, threads=1))
        object.__setattr__(self, "products", ProductStore(self.shards, 1))

    @classmethod
    def build(cls, rows: Mapping[str, Row], dim: int, bundle_digest: str) -> Self:
        """One flat shard of the living products. Rows of another bundle can't be compared: they wait for the next release."""
        rows = {place: row for place, row in rows.items() if row["kind"] == DELETE or row["bundle_digest"] == bundle_digest}
        shard = write_fresh([row for row in rows.values() if row["kind"] != DELETE], dim)
        return cls(rows, (OpenShard(f"{FRESH}/0", FRESH, 0, shard),) if shard else ())

    def with_later(self, rows: Iterable[Row], dim: int, bundle_digest: str) -> Self:
        """This and rows that were read since: in a shard of their own beside those there are, up to MOST_PARTS of them."""
        known = newest(rows, self.rows)
        later = {product_id: row for product_id, row in known.items() if row is not self.rows.get(product_id)}
        if len(self.shards) >= MOST_PARTS or not self.shards:
            return self.build(known, dim, bundle_digest)
        added = self.build(later, dim, bundle_digest)
        shards = [replace(opened, path=f"{FRESH}/{len(self.shards)}") for opened in added.shards]
        shards += [without_products(opened, later) for opened in self.shards]
        kept = {product_id: row for product_id, row in self.rows.items() if product_id not in later}
        return type(self)(kept | dict(added.rows), tuple(shards))

    def search(self, embeddings_QD: np.ndarray, k: int, filters: Filters | None) -> list[list[Candidate]]:
        """Per query the best k of the products that were added or changed."""
        return self.group.search(embeddings_QD, k, None, filters) if self.shards else [[] for _ in embeddings_QD]


def write_fresh(alive: Sequence[Row], dim: int) -> Shard | None:
    """A flat shard of these products; None where there are none."""
    if not alive:
        return None
    crops = pa.Table.from_pylist([{"product_id": row["product_id"], **crop} for row in alive for crop in row["crops"]])
    products = [{**row, "updated_at": moment(row["at"])} for row in alive]
    folder = Path(tempfile.mkdtemp(prefix="fresh-"))
    try:
        names = [name for name in PRODUCTS.names if name != "product_id"]
        table = pa.Table.from_pylist([{n: row[n] for n in ("product_id", *names)} for row in products], schema=PRODUCTS)
        write_shard(folder, crops, table, dim, None)
        return Shard.open(folder, PartitionSpec(factory="Flat"), dim)
    finally:
        shutil.rmtree(folder)  # what is mapped stays readable


def without_products(opened: OpenShard, product_ids: Iterable[str]) -> OpenShard:
    """The shard with these products deleted, beside itself as it was."""
    found = [place for product_id in product_ids if (place := opened.shard.records.find(product_id)) is not None]
    if not found:
        return opened
    shard = copy(opened.shard)
    shard.tombstones = copy(opened.shard.tombstones)
    shard.tombstones.delete(found)
    return replace(opened, shard=shard)


def moment(at: int) -> datetime:
    """Microseconds since 1970 as a time."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
