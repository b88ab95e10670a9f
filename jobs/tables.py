"""The Delta tables: one name, one schema, one writer engine each.

Spark writes listings, rejects, products, images and duplicates; delta-rs (`deltalake`) writes features, fetches and
checks from the Ray job, each in one idempotent commit, and runs from nightly. No deletion vectors, no column mapping: Ray
reads them. Tables hold URIs and hashes, never pixels.
"""

import hashlib
from dataclasses import dataclass

import pyarrow as pa
from deltalake import DeltaTable

# Spark DDL. A listing is one raw row of the feed as it came; listing_id = SHA-256 of that row.
LISTINGS = "listing_id STRING NOT NULL, product_id STRING, raw STRING NOT NULL"

# Bad rows: why, and the row itself. `detail` names column and value.
REJECTS = "listing_id STRING NOT NULL, product_id STRING, reason STRING NOT NULL, detail STRING, raw STRING NOT NULL"

# One curated row a product. `category` is a path such as apparel/shoes/boots; `group_id` joins the variants of a style.
PRODUCTS = (
    "product_id STRING NOT NULL, title STRING NOT NULL, description STRING, category STRING, price DOUBLE, currency STRING, "
    "available BOOLEAN NOT NULL, stock INT, gender STRING, brand STRING, seller STRING, color STRING, group_id STRING, "
    "popularity DOUBLE, updated_at TIMESTAMP, row_hash STRING NOT NULL"
)

# Which photos a product has: absolute URI (file://, s3://, gs://, https://), in the order of the feed.
IMAGES = "product_id STRING NOT NULL, position INT NOT NULL, image_uri STRING NOT NULL"

# Near-duplicate groups: every image with at least one neighbour. group_id = smallest image_id of the group.
DUPLICATES = "image_id STRING NOT NULL, group_id STRING NOT NULL, group_size INT NOT NULL, nearest_distance INT NOT NULL"

# One row per image_uri x bundle: what became of it. status: embedded (its features are stored under image_id; equal
# bytes under two URIs share one image_id and are embedded once) or rejected (with reason and detail, image_id may be null).
FETCHES = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("bundle_digest", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("etag", pa.string()),  # what the server said of these bytes (jobs.raydata.fetch.Validator)
        pa.field("last_modified", pa.string()),
        pa.field("fetched_at", pa.timestamp("us", "UTC")),
    ]
)

# One row per image_uri x bundle that was asked for again and is what it was: when, and what the server said then. No release is
# made of it, so that a night on which no photo changed makes none.
CHECKS = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("bundle_digest", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("last_modified", pa.string()),
        pa.field("fetched_at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)

# One row per image x bundle x crop; crop 0 is the whole image and alone carries the fingerprint.
FEATURES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("bundle_digest", pa.string(), nullable=False),
        pa.field("crop", pa.int32(), nullable=False),
        pa.field("x0", pa.float32(), nullable=False),  # box in pixels of the upright image
        pa.field("y0", pa.float32(), nullable=False),
        pa.field("x1", pa.float32(), nullable=False),
        pa.field("y1", pa.float32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # of the upright image
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label", pa.string()),  # of the detector
        pa.field("score", pa.float32(), nullable=False),  # of the detector; 1 for crop 0
        pa.field("category", pa.string()),  # predicted by the bundle's head; null without one
        pa.field("category_prob", pa.float32()),
        pa.field("embedding", pa.binary(), nullable=False),  # fp16 little-endian, unit length, 2 * dim bytes
        pa.field("hash", pa.binary()),  # 32 bytes
        pa.field("hash_quality", pa.float32()),
        pa.field("colour", pa.binary()),  # 48 bytes
    ]
)

# One row a nightly run, written when it ends; that of a killed run by the one that takes its lease over (jobs.run_records).
RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),  # published, unchanged, refused, failed or killed
        pa.field("exit_code", pa.int32(), nullable=False),
        pa.field("message", pa.string(), nullable=False),  # what was wrong
        pa.field("started_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("cpu_s", pa.float64(), nullable=False),  # of the machine that the run was started on
        pa.field("host", pa.string(), nullable=False),
        pa.field("pid", pa.int64(), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("feed", pa.string(), nullable=False),  # feed.uri; its rows are `listings` at the version below
        pa.field("release_id", pa.string(), nullable=False),  # that was published, or refused; empty where it was not planned
        pa.field(
            "versions", pa.map_(pa.string(), pa.int64()), nullable=False
        ),  # of every table when the run ended; inserts: that is folded in
        pa.field("settings", pa.string(), nullable=False),  # SHA-256 of all of them; MLflow has their text
        pa.field(
            "stages",
            pa.list_(
                pa.struct(
                    [
                        pa.field("name", pa.string()),
                        pa.field("seconds", pa.float64()),
                        pa.field("cpu_s", pa.float64()),
                        pa.field("counts", pa.string()),  # JSON: rows in and out, as the job counts them
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)

TABLE_NAMES = (
    "listings",
    "rejects",
    "products",
    "images",
    "duplicates",
    "fetches",
    "checks",
    "features",
    "feedback",
    "judgments",
    "inserts",
    "runs",
)


@dataclass(frozen=True)
class Tables:
    """Paths of the tables under one folder or URI."""

    root: str

    def path(self, name: str) -> str:
        """URI of table `name`; local folders stay plain paths."""
        assert name in TABLE_NAMES, name
        return f"{self.root.rstrip('/')}/{name}"


def table_version(tables: Tables, name: str) -> int | None:
    """Newest version of table `name`; None where it was never written.

    Object stores are reached with the credentials of the environment (AWS_*, GOOGLE_*), as delta-rs reads them.
    """
    path = tables.path(name)
    return DeltaTable(path).version() if DeltaTable.is_deltatable(path) else None


def table_state(tables: Tables, name: str, version: int | None = None) -> list[str | int] | None:
    """What tells `version` of table `name` (none = the newest) from every other one: the table's id, the version, a digest of the
    names of its data files, which are never given twice.

    The number alone does not: a table that was made anew, or whose last commits were taken away, counts up to it once more.
    None where the table was never written. Raises DeltaError (deltalake.exceptions) where the version is gone.
    """
    if not DeltaTable.is_deltatable(tables.path(name)):
        return None
    table = DeltaTable(tables.path(name), version=version)
    files = sorted(pa.table(table.get_add_actions())["path"].to_pylist())
    return [table.metadata().id, table.version(), hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]]


def read_table(tables: Tables, name: str, columns: list[str] | None = None, version: int | None = None) -> pa.Table:
    """Rows of table `name` at exactly `version` (none = the newest); `columns` picks some, in that order.

    Raises TableNotFoundError where there is none, DeltaError where the version is gone (both deltalake.exceptions).
    """
    return DeltaTable(tables.path(name), version=version).to_pyarrow_table(columns=columns)
