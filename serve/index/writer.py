"""Writes one shard from the crops, photos and products that belong to it.

Letters: N crops, D width, M photos.
"""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.index.manifest import ReleaseError, sync_folder
from serve.index.plan import fill
from serve.index.records import IMAGES, PRODUCTS, ROWS, write_table
from serve.index.shard import COLOURS_FILE, HASHES_FILE, INDEX_FILE, VECTORS_FILE, check_vectors
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES

CROP_COLUMNS = ("product_id", "position", "image_uri", "image_id", "crop", "x0", "y0", "x1", "y1", "embedding", "hash", "colour")


def write_shard(folder: Path, crops: pa.Table, products: pa.Table, dim: int, template: bytes | None) -> None:
    """Fill the empty folder `folder`.

    `crops` has CROP_COLUMNS, one row a (product, photo, crop): position orders the photos of a product, image_id is hex,
    embedding is fp16 bytes, hash and colour are set on crop 0. `products` has the columns of records.PRODUCTS for exactly the
    products of `crops`. `template`: None = flat. Raises ReleaseError for doubled rows, photos without crop 0, or vectors that
    are not of unit length.
    """
    products = products.select(PRODUCTS.names).cast(PRODUCTS).sort_by("product_id")
    crops = crops.sort_by([(key, "ascending") for key in ("product_id", "position", "image_id", "crop")])
    product_N = code_of(products["product_id"], crops["product_id"], folder)
    image_ids = crops["image_id"].to_numpy(zero_copy_only=False)
    crop_N = crops["crop"].to_numpy()
    new_image = np.ones(len(crops), bool)
    new_image[1:] = (product_N[1:] != product_N[:-1]) | (image_ids[1:] != image_ids[:-1])
    doubled = ~new_image[1:] & (crop_N[1:] == crop_N[:-1])
    if doubled.any():
        raise ReleaseError(f"{folder.name}: {doubled.sum()} doubled rows, such as image {image_ids[1:][doubled][0]}")
    whole = np.flatnonzero(new_image)  # sorted by crop, so the first row of a photo is its crop 0
    if (crop_N[whole] != 0).any():
        raise ReleaseError(f"{folder.name}: photos without crop 0, such as image {image_ids[whole][crop_N[whole] != 0][0]}")
    vectors_ND = rows_of(crops["embedding"], 2 * dim, f"{folder.name}: embedding").view(np.float16)
    check_vectors(vectors_ND, dim, f"{folder.name}: embedding")
    photos = crops.take(whole)
    write_table(folder / "products.arrow", products)
    write_table(folder / "images.arrow", images_table(photos, product_N[whole], whole))
    numbers = {"image": np.cumsum(new_image) - 1, "product": product_N}
    boxes = {name: crops[name] for name in ("crop", "x0", "y0", "x1", "y1")}
    write_table(folder / "rows.arrow", pa.table(numbers | boxes).select(ROWS.names).cast(ROWS))
    vectors_ND.tofile(folder / VECTORS_FILE)
    rows_of(photos["hash"], HASH_BYTES, f"{folder.name}: hash").tofile(folder / HASHES_FILE)
    rows_of(photos["colour"], COLOUR_BYTES, f"{folder.name}: colour").tofile(folder / COLOURS_FILE)
    if template is not None:
        faiss.write_index(fill(template, vectors_ND), str(folder / INDEX_FILE))
    sync_folder(folder)


def images_table(photos: pa.Table, product_M: np.ndarray, whole_M: np.ndarray) -> pa.Table:
    """images.arrow of the photos' crop 0 rows."""
    ids = [bytes.fromhex(image_id) for image_id in photos["image_id"].to_pylist()]
    columns = {"image_id": pa.array(ids, pa.binary(32)), "image_uri": photos["image_uri"], "product": product_M}
    return pa.table(columns | {"crop_row": whole_M}).cast(IMAGES)


def code_of(values: pa.ChunkedArray, wanted: pa.ChunkedArray, folder: Path) -> np.ndarray:
    """Place of each of `wanted` in `values`, int32. Raises ReleaseError where the two differ as sets."""
    places = pc.index_in(wanted.cast(values.type), value_set=values)
    if places.null_count or len(pc.unique(places)) != len(values) or len(pc.unique(values)) != len(values):
        raise ReleaseError(f"{folder.name}: its products and the products of its crops are not the same, or are doubled")
    return np.asarray(places.to_numpy(), np.int32)


def rows_of(column: pa.ChunkedArray, width: int, what: str) -> np.ndarray:
    """Binary values of `width` bytes each as (N, width) uint8. Raises ReleaseError for another width or a missing value."""
    values = column.combine_chunks().cast(pa.large_binary())
    lengths = pc.binary_length(values).to_numpy(zero_copy_only=False)
    if values.null_count or (lengths != width).any():
        raise ReleaseError(f"{what}: {values.null_count} missing, widths {sorted(set(lengths))[:5]}, expected {width} bytes each")
    data = np.frombuffer(b"" if values.buffers()[2] is None else values.buffers()[2], np.uint8)
    start = int(np.frombuffer(values.buffers()[1], np.int64)[values.offset]) if len(values) else 0
    return data[start : start + len(values) * width].reshape(-1, width)
