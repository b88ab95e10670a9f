"""A shard without its deleted products, or several shards as one: read back as the rows they were written from.

Letters: N crops.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from serve.index.shard import Shard
from serve.index.writer import CROP_COLUMNS

BOX = ("x0", "y0", "x1", "y1")


def living_rows(shards: Sequence[Shard]) -> tuple[pa.Table, pa.Table]:
    """Crops and products of the shards for `write_shard`, deleted products left out. Embeddings are those that are stored."""
    crops, products = zip(*(rows_of_shard(shard) for shard in shards), strict=True)
    return pa.concat_tables(crops), pa.concat_tables(products)


def rows_of_shard(shard: Shard, chosen_P: np.ndarray | None = None) -> tuple[pa.Table, pa.Table]:
    """As `living_rows`, of one; `chosen_P`: only these products (bool), deleted or not."""
    records = shard.records
    kept_P = ~shard.tombstones.deleted_P if chosen_P is None else chosen_P
    rows_N = np.flatnonzero(kept_P[records.product_of_row_R])
    image_N, product_N = records.image_of_row_R[rows_N], records.product_of_row_R[rows_N]
    crop_N = records.crop_of_row_R[rows_N]
    is_whole = pa.array(crop_N == 0)
    ids = pa.array([image_id.hex() for image_id in records.image_ids.take(pa.array(image_N)).to_pylist()])
    columns = {
        "product_id": records.product_ids.take(pa.array(product_N)),
        "position": pa.array(image_N),  # photos lie in their order
        "image_uri": records.image_uris.take(pa.array(image_N)),
        "image_id": ids,
        "crop": pa.array(crop_N),
        **{name: pa.array(side[rows_N]) for name, side in zip(BOX, records.boxes, strict=True)},
        "embedding": binary(np.stack([shard.embedding(int(row)) for row in rows_N]).astype(np.float16) if len(rows_N) else None),
        "hash": binary(shard.hashes_M32[image_N], is_whole),
        "colour": binary(shard.colours_M48[image_N], is_whole),
    }
    return pa.table(columns).select(list(CROP_COLUMNS)), pa.table(records.products).filter(pa.array(kept_P))


def binary(rows: np.ndarray | None, is_set: pa.BooleanArray | None = None) -> pa.Array:
    """Each row's bytes; null where `is_set` is false."""
    values = pa.array([] if rows is None else [row.tobytes() for row in rows], pa.binary())
    return values if is_set is None else pa.compute.if_else(is_set, values, None)
