"""A shard of generated vectors as build_shards writes it: one photo a product, one crop a photo."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.index.records import PRODUCTS
from serve.index.spec import VectorKind
from serve.index.writer import CROP_COLUMNS, write_shard

PART = 50_000


def write_bench_shard(folder: Path, vectors: np.ndarray, template: bytes | None, kind: VectorKind) -> None:
    """Row i of the shard is row i of `vectors`."""
    crops = folder.with_name(folder.name + ".parquet")
    random, writer = np.random.default_rng(3), None
    for start in range(0, len(vectors), PART):
        part = np.ascontiguousarray(vectors[start : start + PART])
        numbers = range(start, start + len(part))
        columns = {
            "product_id": [f"p{n:09d}" for n in numbers],
            "position": pa.array([0] * len(part), pa.int32()),
            "image_uri": [f"s3://shop/photos/{n:09d}.jpg" for n in numbers],
            "image_id": [hashlib.sha256(b"%d" % n).hexdigest() for n in numbers],
            "crop": pa.array([0] * len(part), pa.int32()),
            **{side: pa.array(np.zeros(len(part), np.float32)) for side in ("x0", "y0", "x1", "y1")},
            "embedding": fixed(part.view(np.uint8)),
            "hash": fixed(random.integers(0, 256, (len(part), 32), dtype=np.uint8)),
            "colour": fixed(random.integers(0, 256, (len(part), 48), dtype=np.uint8)),
        }
        table = pa.table(columns).select(list(CROP_COLUMNS))
        writer = writer or pq.ParquetWriter(crops, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    ids = [f"p{n:09d}" for n in range(len(vectors))]
    blank = {field.name: pa.nulls(len(ids), field.type) for field in PRODUCTS}
    products = pa.table(blank | {"product_id": ids, "title": ids, "available": pa.array(np.ones(len(ids), bool))})
    write_shard(folder, crops, products, vectors.shape[1], template, kind)
    crops.unlink()


def fixed(rows: np.ndarray) -> pa.Array:
    """Each row as one binary value."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows.tobytes())]).cast(
        pa.binary()
    )
