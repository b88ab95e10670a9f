"""Writes one shard from the crops, photos and products that belong to it.

Vectors pass through a chunk at a time: they are never in memory together, only on disk, in the order of the rows.
Letters: N crops, D width, M photos.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from serve.index.hash_table import write_tables
from serve.index.hubness import HUBNESS_FILE, hubness
from serve.index.manifest import ReleaseError, sync_folder
from serve.index.records import IMAGES, PRODUCTS, ROWS, write_table
from serve.index.shard import COLOURS_FILE, HASHES_FILE, INDEX_FILE, check_vectors
from serve.index.spec import VectorKind
from serve.index.vectors import RANGE_ROWS, VectorWriter, chunks
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES

CROP_COLUMNS = ("product_id", "position", "image_uri", "image_id", "crop", "x0", "y0", "x1", "y1", "embedding", "hash", "colour")
SCRATCH_FILE = ".scratch.f16"
PRODUCTS_FILE = "products.arrow"
KEYS = ("product_id", "position", "image_id", "crop")


def write_shard(
    folder: Path,
    crops: pa.Table | Path,
    products: pa.Table,
    dim: int,
    template: bytes | None,
    vectors: VectorKind = "fp16",
    ordered: Path | None = None,
    queries_BD: np.ndarray | None = None,
) -> None:
    """Fill the empty folder `folder`.

    `crops` (a table, or the Parquet file that holds it) has CROP_COLUMNS, one row a (product, photo, crop): position orders the
    photos of a product, image_id is hex, embedding is fp16 bytes, hash and colour are set on crop 0. `products` has the columns
    of records.PRODUCTS for exactly the products of `crops`. `template`: None = flat. `ordered`: a file that keeps the vectors,
    (N, D) fp16 in the order of the rows. `queries_BD`: float32 unit vectors of the bundle's queries; without, no hubness is
    written. Raises ReleaseError for doubled rows, photos without crop 0, or vectors that are not of unit length.
    """
    products = write_products(folder, products)
    dataset = pyarrow.dataset.dataset(crops)
    keys = dataset.to_table([name for name in CROP_COLUMNS if name != "embedding"])
    order = pc.sort_indices(keys, [(key, "ascending") for key in KEYS]).to_numpy()
    keys = keys.take(pa.array(order))
    product_N = code_of(products["product_id"], keys["product_id"], folder)
    image_ids = keys["image_id"].to_numpy(zero_copy_only=False)
    crop_N = keys["crop"].to_numpy()
    new_image = np.ones(len(keys), bool)
    new_image[1:] = (product_N[1:] != product_N[:-1]) | (image_ids[1:] != image_ids[:-1])
    doubled = ~new_image[1:] & (crop_N[1:] == crop_N[:-1])
    if doubled.any():
        raise ReleaseError(f"{folder.name}: {doubled.sum()} doubled rows, such as image {image_ids[1:][doubled][0]}")
    whole = np.flatnonzero(new_image)  # sorted by crop, so the first row of a photo is its crop 0
    if (crop_N[whole] != 0).any():
        raise ReleaseError(f"{folder.name}: photos without crop 0, such as image {image_ids[whole][crop_N[whole] != 0][0]}")
    photos = keys.take(whole)
    write_table(folder / "images.arrow", images_table(photos, product_N[whole], whole))
    numbers = {"image": np.cumsum(new_image) - 1, "product": product_N}
    boxes = {name: keys[name] for name in ("crop", "x0", "y0", "x1", "y1")}
    write_table(folder / "rows.arrow", pa.table(numbers | boxes).select(ROWS.names).cast(ROWS))
    hashes_M32 = rows_of(photos["hash"], HASH_BYTES, f"{folder.name}: hash")
    hashes_M32.tofile(folder / HASHES_FILE)
    write_tables(folder, hashes_M32)
    rows_of(photos["colour"], COLOUR_BYTES, f"{folder.name}: colour").tofile(folder / COLOURS_FILE)
    path = ordered or folder / SCRATCH_FILE
    vectors_ND = order_vectors(path, dataset, order, dim, folder.name)
    write_vectors(folder, vectors_ND, template, vectors)
    if queries_BD is not None:
        hubness(vectors_ND, product_N, queries_BD).tofile(folder / HUBNESS_FILE)
    if ordered is None:
        path.unlink()
    sync_folder(folder)


def write_products(folder: Path, products: pa.Table) -> pa.Table:
    """products.arrow of a shard: its products' attributes; returns them as they were written."""
    products = products.select(PRODUCTS.names).cast(PRODUCTS).sort_by("product_id")
    write_table(folder / PRODUCTS_FILE, products)
    return products


def order_vectors(path: Path, dataset: pyarrow.dataset.Dataset, order: np.ndarray, dim: int, what: str) -> np.ndarray:
    """(N, D) fp16 in the order of the rows, mapped from the new file `path`; every vector checked."""
    path.touch()
    if not len(order):
        return np.empty((0, dim), np.float16)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    scratch_ND = np.memmap(path, np.float16, "w+", shape=(len(order), dim))
    start = 0
    for batch in dataset.to_batches(columns=["embedding"]):
        rows_BD = rows_of(pa.chunked_array([batch["embedding"]]), 2 * dim, f"{what}: embedding").view(np.float16)
        scratch_ND[place[start : start + len(batch)]] = rows_BD
        start += len(batch)
    check_vectors(scratch_ND, dim, f"{what}: embedding")
    return scratch_ND


def write_vectors(folder: Path, vectors_ND: np.ndarray, template: bytes | None, kind: VectorKind) -> None:
    """The stored vectors, and the template filled with them (row number = FAISS id); both in one pass over the rows."""
    index: Any = None if template is None else faiss.deserialize_index(np.frombuffer(template, np.uint8))
    sample_ND = vectors_ND[:: max(len(vectors_ND) // RANGE_ROWS, 1)].astype(np.float32) if kind == "sq8" else vectors_ND[:0]
    with closing(VectorWriter(folder, kind, vectors_ND.shape[1], sample_ND, norms=index is not None)) as writer:
        for part in chunks(len(vectors_ND)):
            chunk_ND = np.ascontiguousarray(vectors_ND[part], np.float32)
            writer.add(chunk_ND)
            if index is not None:
                index.add(chunk_ND)
    if index is not None:
        faiss.write_index(index, str(folder / INDEX_FILE))


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
