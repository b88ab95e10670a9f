"""What a shard knows beside its vectors: rows, photos and products, as Arrow files that are read where they lie on disk.

    products.arrow   one row a product, sorted by product_id: its attributes
    images.arrow     one row a photo of a product, sorted by product, then by the feed's order: image_id (32 bytes), image_uri,
                     product (its row in products.arrow), crop_row (the row of its whole image, crop 0)
    rows.arrow       one row a crop, sorted by image, then by crop: image, product, crop, box. Row number = FAISS id = vector

Sorted like this, every look-up is a binary search or a slice, and nothing is held in memory. Arrow rather than Parquet, since
Parquet can't be mapped. Letters: R rows.
"""

import bisect
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

PRODUCTS = pa.schema(
    [
        pa.field("product_id", pa.large_string(), nullable=False),
        pa.field("title", pa.large_string(), nullable=False),
        pa.field("category", pa.large_string()),
        pa.field("price", pa.float64()),
        pa.field("currency", pa.large_string()),
        pa.field("available", pa.bool_(), nullable=False),
        pa.field("stock", pa.int32()),
        pa.field("gender", pa.large_string()),
        pa.field("brand", pa.large_string()),
        pa.field("seller", pa.large_string()),
        pa.field("color", pa.large_string()),
        pa.field("group_id", pa.large_string()),
        pa.field("popularity", pa.float64()),
        pa.field("updated_at", pa.timestamp("us", tz="UTC")),
    ]
)
IMAGES = pa.schema(
    [
        pa.field("image_id", pa.binary(32), nullable=False),
        pa.field("image_uri", pa.large_string(), nullable=False),
        pa.field("product", pa.int32(), nullable=False),
        pa.field("crop_row", pa.int64(), nullable=False),
    ]
)
ROWS = pa.schema(
    [
        pa.field("image", pa.int32(), nullable=False),
        pa.field("product", pa.int32(), nullable=False),
        pa.field("crop", pa.int32(), nullable=False),
        pa.field("x0", pa.float32(), nullable=False),  # box in pixels of the upright image
        pa.field("y0", pa.float32(), nullable=False),
        pa.field("x1", pa.float32(), nullable=False),
        pa.field("y1", pa.float32(), nullable=False),
    ]
)
RECORD_FILES = {"products.arrow": PRODUCTS, "images.arrow": IMAGES, "rows.arrow": ROWS}


def bucket_of(product_id: str, num_buckets: int) -> int:
    """The bucket of a product: the same on every machine and every night."""
    return int.from_bytes(hashlib.blake2b(product_id.encode(), digest_size=8).digest(), "little") % num_buckets


def write_table(path: Path, table: pa.Table) -> None:
    """One record batch, uncompressed, so that a reader maps it without a copy."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


class Records:
    """The three tables of one shard, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.products, self.images, self.rows = (read_batch(folder / name, schema) for name, schema in RECORD_FILES.items())
        self.columns = {name: self.products[name] for name in PRODUCTS.names}  # of products
        self.product_ids, self.categories = self.columns["product_id"], self.columns["category"]
        self.image_ids, self.image_uris = self.images["image_id"], self.images["image_uri"]
        self.product_of_row_R = self.rows["product"].to_numpy()  # int32, ascending
        self.image_of_row_R = self.rows["image"].to_numpy()
        self.crop_of_row_R = self.rows["crop"].to_numpy()
        self.boxes = [self.rows[name].to_numpy() for name in ("x0", "y0", "x1", "y1")]
        self.product_of_image = self.images["product"].to_numpy()
        self.crop_rows = self.images["crop_row"].to_numpy()

    @property
    def num_rows(self) -> int:
        return int(self.rows.num_rows)

    @property
    def num_products(self) -> int:
        return int(self.products.num_rows)

    def find(self, product_id: str) -> int | None:
        """Row of the product in products.arrow; None when it is not in this shard."""
        ids = self.product_ids
        place = bisect.bisect_left(range(len(ids)), product_id.encode(), key=lambda i: ids[i].as_py().encode())
        return place if place < len(ids) and ids[place].as_py() == product_id else None

    def first_image(self, product: int) -> int:
        """Row of the product's first photo in images.arrow."""
        return bisect.bisect_left(self.product_of_image, product)  # np.searchsorted copies a column of another type

    def attributes(self, product: int) -> dict[str, Any]:
        """Every column of the product, and image_id and image_uri of its first photo."""
        first = self.first_image(product)
        photo = {"image_id": self.image_id(first), "image_uri": self.image_uri(first)}
        return {name: column[product].as_py() for name, column in self.columns.items()} | photo

    def image_id(self, image: int) -> str:
        """Hex SHA-256 of the photo's bytes."""
        return str(self.image_ids[image].as_py().hex())

    def image_uri(self, image: int) -> str:
        return str(self.image_uris[image].as_py())

    def photo_uri(self, product: int, image_id: str) -> str | None:
        """Where the product's photo `image_id` lies; None when it has no such photo."""
        first, end = self.first_image(product), self.first_image(product + 1)
        return next((self.image_uri(image) for image in range(first, end) if self.image_id(image) == image_id), None)

    def product_id(self, product: int) -> str:
        return str(self.product_ids[product].as_py())

    def category(self, product: int) -> str | None:
        value: str | None = self.categories[product].as_py()
        return value


def read_batch(path: Path, schema: pa.Schema) -> pa.RecordBatch:
    """The table at `path` as one mapped batch. Raises OSError or ArrowInvalid where it is none."""
    with pa.ipc.open_file(pa.memory_map(str(path))) as file:
        if not file.schema.equals(schema):
            raise pa.ArrowInvalid(f"{path}: another schema than this code reads")
        return file.get_batch(0) if file.num_record_batches else pa.RecordBatch.from_pylist([], schema=schema)
