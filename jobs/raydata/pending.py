"""Which images a run of embed_images looks at: new ones, those whose fault may pass, those that are to be asked for again.

A URI is looked at once per bundle. What became of it is in `fetches`; where it was asked for again and had not changed, the newer
time and the newer validator are in `checks`.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from jobs.raydata.actors import ASKED
from jobs.raydata.fetch import TRANSIENT
from jobs.tables import CHECKS, FETCHES, Tables, read_table, table_version

HOST = r"^(?P<host>[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)"


def pending_images(
    tables: Tables,
    images_version: int,
    digest: str,
    *,
    retry: bool,
    refetch_days: float | None = None,
    stored_ids: Collection[str] | None = None,
) -> pa.Table:
    """ASKED: the distinct URIs to look at with this bundle, their hosts mixed.

    `retry`: those that failed for a passing reason, too, and those that were looked at more than `refetch_days` ago.
    `stored_ids`: images that `features` holds, where it may hold less than `fetches` says; the others are looked at again.
    """
    uris = pc.unique(read_table(tables, "images", ["image_uri"], images_version)["image_uri"])
    known = fetched(tables, digest) if refetch_days is None or not retry else looked_at(tables, digest)
    if stored_ids is not None:
        there = pc.is_in(known["image_id"], pa.array(stored_ids, pa.string()))
        known = known.filter(pc.or_(there, pc.is_valid(known["reason"])))
    passing = pc.is_in(known["reason"], pa.array(TRANSIENT, pa.string()))
    new = uris.filter(pc.invert(pc.is_in(uris, known.filter(pc.invert(passing))["image_uri"] if retry else known["image_uri"])))
    asked = [first_look(new)]
    if refetch_days is not None and retry:
        before = pa.scalar(datetime.now(UTC) - timedelta(days=refetch_days), FETCHES.field("fetched_at").type)
        old = pc.fill_null(pc.less(known["fetched_at"], before), True)
        again = known.filter(pc.and_(pc.and_(old, pc.invert(passing)), pc.is_in(known["image_uri"], uris)))
        asked.append(again.rename_columns({"status": "known"}).select(ASKED.names).cast(ASKED))
    return mixed(pa.concat_tables(asked).sort_by("image_uri"))


def most_popular(tables: Tables, images_version: int, asked: pa.Table, most: int) -> pa.Table:
    """At most so many rows of `asked`: those of the most popular products, and of each its first photos first."""
    if asked.num_rows <= most:
        return asked
    photos = read_table(tables, "images", ["product_id", "position", "image_uri"], images_version)
    photos = photos.filter(pc.is_in(photos["image_uri"], asked["image_uri"]))
    photos = photos.join(read_table(tables, "products", ["product_id", "popularity"]), "product_id")
    wanted = photos.group_by("image_uri").aggregate([("popularity", "max"), ("position", "min")])
    order = [("popularity_max", "descending"), ("position_min", "ascending"), ("image_uri", "ascending")]
    first = wanted.sort_by(order).slice(0, most)["image_uri"]
    return asked.filter(pc.is_in(asked["image_uri"], first))


def first_look(uris: pa.Array | list[str]) -> pa.Table:
    """ASKED of URIs that nothing is known of."""
    return pa.table({"image_uri": uris} | {name: pa.nulls(len(uris), pa.string()) for name in ASKED.names[1:]}, schema=ASKED)


def mixed(asked: pa.Table) -> pa.Table:
    """The rows so that each stretch of them has its share of every host: a slow host then paces no block more than the others.

    The rows of one host keep their order, so those of a catalog with one host all do.
    """
    hosts = pc.struct_field(pc.extract_regex(asked["image_uri"], HOST), "host").fill_null("").combine_chunks()
    codes = hosts.dictionary_encode().indices.to_numpy()
    by_host = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    places = np.empty(len(codes))
    places[by_host] = np.arange(len(codes)) - np.repeat(starts, counts)
    return asked.take(pa.array(np.argsort((places + 0.5) / counts[codes], kind="stable")))


def fetched(tables: Tables, digest: str) -> pa.Table:
    """image_uri, image_id and reason (null = embedded) of every URI that was looked at with this bundle."""
    return rows_of(tables, "fetches", FETCHES, ["image_uri", "image_id", "reason"], digest)


def looked_at(tables: Tables, digest: str) -> pa.Table:
    """The same with status, the newest validator, and when that was said; fetched_at is null where nobody kept it."""
    newest = ["etag", "last_modified", "fetched_at"]
    first = rows_of(tables, "fetches", FETCHES, ["image_uri", "image_id", "status", "reason", *newest], digest)
    last = rows_of(tables, "checks", CHECKS, ["image_uri", *newest], digest)
    both = first.join(last, "image_uri", join_type="left outer", right_suffix="_checked")
    later = pc.fill_null(pc.greater(both["fetched_at_checked"], both["fetched_at"]), pc.is_valid(both["fetched_at_checked"]))
    for name in newest:
        column = pc.if_else(later, both[f"{name}_checked"], both[name])
        both = both.set_column(both.column_names.index(name), name, column)
    return both.select(first.column_names)


def rows_of(tables: Tables, name: str, schema: pa.Schema, columns: list[str], digest: str) -> pa.Table:
    """`columns` of the rows of this bundle; those that an older table lacks are null."""
    if table_version(tables, name) is None:
        return pa.schema([schema.field(column) for column in columns]).empty_table()
    return DeltaTable(tables.path(name)).to_pyarrow_dataset(schema=schema).to_table(columns, pc.field("bundle_digest") == digest)
