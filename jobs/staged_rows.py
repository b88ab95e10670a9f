"""From the tables to the rows of each shard: joined on keys, cut by partition and bucket, staged as Parquet.

Features pass through once, as a stream: a shard's vectors are first held together in memory by the task that builds it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from deltalake import DeltaTable

from jobs.config import JobError
from jobs.reuse import rows_digests
from jobs.tables import Tables, read_table
from serve.index.manifest import Counts
from serve.index.records import PRODUCTS, bucket_of
from serve.index.search import category_prefix
from serve.index.spec import IndexConfig
from serve.index.writer import CROP_COLUMNS

REST = "rest"
FEATURE_COLUMNS = ("image_id", "crop", "x0", "y0", "x1", "y1", "embedding", "hash", "colour")


@dataclass(frozen=True)
class Cut:
    """One partition and the numbers of its shards' rows by bucket."""

    name: str
    categories: tuple[str, ...]
    rows_by_bucket: tuple[int, ...]


@dataclass(frozen=True)
class CatalogRows:
    """The photos of the planned release, cut into shards. A shard's number is partition * num_buckets + bucket."""

    photos: pa.Table
    cuts: list[Cut]
    num_buckets: int
    digests: list[str]  # of each shard's photos
    dim: int
    counts: Counts

    @property
    def names(self) -> list[str]:
        """Folder of each shard, by number."""
        return [f"p{p:03d}-b{bucket:03d}" for p in range(len(self.cuts)) for bucket in range(self.num_buckets)]

    def shards_of(self, partition: int) -> range:
        """Numbers of the partition's shards, by bucket."""
        return range(partition * self.num_buckets, (partition + 1) * self.num_buckets)

    def num_rows(self, number: int) -> int:
        """Crops of a shard."""
        return int(self.cuts[number // self.num_buckets].rows_by_bucket[number % self.num_buckets])


def read_rows(tables: Tables, versions: dict[str, int], bundle_digest: str, config: IndexConfig, generation: int) -> CatalogRows:
    """Every photo that has features, and the shard it belongs to; no vector is read. Raises JobError when there are none."""
    photos = catalog_photos(tables, versions, bundle_digest)
    if not photos.num_rows:
        raise JobError(
            f"{tables.root}: no product has an embedded photo (bundle {bundle_digest[:12]}); see table fetches for why"
        )
    crops = count_crops(tables, versions, bundle_digest)
    num_crops = pa.array([crops.get(image_id, 0) for image_id in photos["image_id"].to_pylist()], pa.int64())
    if lost := pc.sum(pc.equal(num_crops, 0)).as_py():
        raise JobError(
            f"{tables.path('features')}: lacks {lost} photos that `fetches` calls embedded: one of the two was put back or made "
            "anew; run jobs.embed_images, which embeds them again"
        )
    photos = photos.append_column("num_crops", num_crops)
    cuts, shards = cut_shards(photos, config)
    photos = photos.append_column("shard", pa.array(shards))
    num_buckets = config.num_shards
    return CatalogRows(
        photos,
        cuts,
        num_buckets,
        rows_digests(photos, len(cuts) * num_buckets, bundle_digest, generation),
        embedding_dim(tables, versions, bundle_digest),
        Counts(
            products=len(photos["product_id"].unique()),
            images=len(photos["image_id"].unique()),
            crops=sum(sum(cut.rows_by_bucket) for cut in cuts),
        ),
    )


def catalog_photos(tables: Tables, versions: dict[str, int], bundle_digest: str) -> pa.Table:
    """product_id, category, position, image_uri, image_id: one row for each photo of each product that has features.

    Equal bytes under two URIs of one product are one photo, at the first place. Sorted by product, place and URI.
    """
    ours = pc.field("bundle_digest") == bundle_digest
    fetches = dataset(tables, "fetches", versions).to_table(["image_uri", "image_id"], ours & (pc.field("status") == "embedded"))
    images = read_table(tables, "images", ["product_id", "position", "image_uri"], versions["images"])
    products = read_table(tables, "products", ["product_id", "category"], versions["products"])
    photos = images.join(fetches, "image_uri", join_type="inner").join(products, "product_id", join_type="inner")
    in_order = [("product_id", "ascending"), ("position", "ascending"), ("image_uri", "ascending")]
    first = photos.sort_by(in_order).group_by(["product_id", "image_id"], use_threads=False).aggregate(
        [("category", "first"), ("position", "first"), ("image_uri", "first")]
    )  # fmt: skip
    names = [name.removesuffix("_first") for name in first.column_names]
    return first.rename_columns(names).sort_by(in_order)  # groups come in an order of their own


def count_crops(tables: Tables, versions: dict[str, int], bundle_digest: str) -> dict[str, int]:
    """Crops of each image."""
    counts: Counter[str] = Counter()
    scanner = dataset(tables, "features", versions).scanner(["image_id"], filter=pc.field("bundle_digest") == bundle_digest)
    for batch in scanner.to_batches():
        for pair in pc.value_counts(batch["image_id"]).to_pylist():
            counts[pair["values"]] += pair["counts"]
    return counts


def cut_shards(photos: pa.Table, config: IndexConfig) -> tuple[list[Cut], np.ndarray]:
    """The partitions, and for every photo (it has num_crops) the number of its shard: partition * num_shards + bucket (int32)."""
    prefixes = [category_prefix(category, config.partition_depth) for category in photos["category"].to_pylist()]
    num_crops = photos["num_crops"].to_numpy()
    rows: defaultdict[str, int] = defaultdict(int)
    for prefix, num in zip(prefixes, num_crops, strict=True):
        rows[prefix] += int(num)
    named = sorted(prefix for prefix, num in rows.items() if prefix and num >= config.min_partition_rows)
    packed = sorted(set(rows) - set(named))
    names = [*named, REST] if packed else named
    number = {prefix: place for place, prefix in enumerate(named)} | dict.fromkeys(packed, len(named))
    buckets = [bucket_of(product_id, config.num_shards) for product_id in photos["product_id"].to_pylist()]
    shards = np.array([number[p] * config.num_shards + b for p, b in zip(prefixes, buckets, strict=True)], np.int32)
    sizes = np.bincount(shards, weights=num_crops, minlength=len(names) * config.num_shards).astype(int)
    cuts = [
        Cut(name, tuple(packed) if name == REST else (name,), tuple(sizes[i * config.num_shards : (i + 1) * config.num_shards]))
        for i, name in enumerate(names)
    ]
    return cuts, shards


def embedding_dim(tables: Tables, versions: dict[str, int], bundle_digest: str) -> int:
    """Width of the bundle's vectors, from the first one; the shard writer checks them all."""
    ours = pc.field("bundle_digest") == bundle_digest
    return len(dataset(tables, "features", versions).head(1, columns=["embedding"], filter=ours)["embedding"][0].as_py()) // 2


def stage_crops(tables: Tables, versions: dict[str, int], bundle_digest: str, photos: pa.Table, paths: dict[int, Path]) -> int:
    """Writes CROP_COLUMNS of every photo to the file of its shard, by the shard's number; returns the crops."""
    ours = pc.field("bundle_digest") == bundle_digest
    features, columns = dataset(tables, "features", versions), list(FEATURE_COLUMNS)
    scan = acero.Declaration.from_sequence(
        [
            acero.Declaration("scan", acero.ScanNodeOptions(features, columns=[*columns, "bundle_digest"], filter=ours)),
            acero.Declaration("filter", acero.FilterNodeOptions(ours)),  # the scan's own only skips files and row groups
            acero.Declaration("project", acero.ProjectNodeOptions([pc.field(name) for name in columns], columns)),
        ]
    )
    owned = photos.select(["product_id", "position", "image_uri", "image_id", "shard"])
    owners = acero.Declaration("table_source", acero.TableSourceNodeOptions(owned))
    keys = {"left_keys": ["image_id"], "right_keys": ["image_id"]}
    outputs = {"left_output": columns, "right_output": ["product_id", "position", "image_uri", "shard"]}
    joined = acero.Declaration("hashjoin", acero.HashJoinNodeOptions("inner", **keys, **outputs), inputs=[scan, owners])
    num_crops = 0
    with ExitStack() as files, joined.to_reader() as reader:
        schema = pa.schema([reader.schema.field(name) for name in CROP_COLUMNS])
        writers = {number: files.enter_context(pq.ParquetWriter(path, schema)) for number, path in paths.items()}
        for batch in reader:
            num_crops += batch.num_rows
            for number, part in by_shard(batch):
                writers[number].write_batch(part.select(list(CROP_COLUMNS)))
    return num_crops


def stage_products(tables: Tables, versions: dict[str, int], photos: pa.Table, paths: list[Path]) -> None:
    """Writes the attributes of every product that has a photo to the file of its shard."""
    owners = photos.select(["product_id", "shard"]).group_by("product_id").aggregate([("shard", "min")])
    products = read_table(tables, "products", PRODUCTS.names, versions["products"]).join(owners, "product_id", join_type="inner")
    for number, path in enumerate(paths):
        pq.write_table(products.filter(pc.field("shard_min") == number).select(PRODUCTS.names), path)


def by_shard(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of each shard that has any."""
    shards = batch["shard"].to_numpy()
    order = np.argsort(shards, kind="stable")
    numbers, starts = np.unique(shards[order], return_index=True)
    ordered = batch.take(pa.array(order))
    for number, start, end in zip(numbers, starts, [*starts[1:], len(order)], strict=True):
        yield int(number), ordered.slice(int(start), int(end - start))


def dataset(tables: Tables, name: str, versions: dict[str, int]) -> pyarrow.dataset.Dataset:
    """Table `name` at its pinned version, to be scanned."""
    return DeltaTable(tables.path(name), version=versions[name]).to_pyarrow_dataset()
