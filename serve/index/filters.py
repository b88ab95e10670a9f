"""Which products of a shard may be answered. Letters: P products."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.index.records import Records


@dataclass(frozen=True)
class Filters:
    """Which products may be answered; none = all. Strings compare exactly, `category` as a path prefix.

    A product without the attribute that is asked for does not pass.
    """

    price_min: float | None = None
    price_max: float | None = None
    gender: str | None = None
    brand: str | None = None
    available: bool | None = None
    category: str | None = None
    without: frozenset[str] = frozenset()  # product ids that must not come back, such as those deleted since the build


def allowed_products(records: Records, filters: Filters | None) -> np.ndarray | None:
    """(P,) bool of the products that pass; None = all of them."""
    if filters is None or filters == Filters():
        return None
    products = records.products
    allowed_P = np.ones(records.num_products, bool)
    conditions: list[pa.Array] = []
    if filters.price_min is not None:
        conditions.append(pc.greater_equal(products["price"], filters.price_min))
    if filters.price_max is not None:
        conditions.append(pc.less_equal(products["price"], filters.price_max))
    for name in ("gender", "brand", "available"):
        value = getattr(filters, name)
        if value is not None:
            conditions.append(pc.equal(products[name], value))
    if filters.category is not None:
        path = filters.category.strip("/")
        below = pc.starts_with(products["category"], f"{path}/")
        conditions.append(pc.or_(pc.equal(products["category"], path), below))
    for condition in conditions:
        allowed_P &= pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
    for product_id in filters.without:
        product = records.find(product_id)
        if product is not None:
            allowed_P[product] = False
    return allowed_P


def allowed_among(parts: Sequence[Records], filters: Filters | None) -> np.ndarray | None:
    """`allowed_products` of several shards, one after the other."""
    found = [allowed_products(records, filters) for records in parts]
    kept = [allowed_P for allowed_P in found if allowed_P is not None]
    return np.concatenate(kept) if kept else None
