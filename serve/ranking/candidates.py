"""The candidates of one query as columns, and what is known of the shopper.

Letters: N candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# What re-ranking reads of a product, as in serve.index.records.PRODUCTS.
COLUMNS = ("category", "price", "currency", "available", "gender", "brand", "seller", "group_id", "popularity", "updated_at")


@dataclass(frozen=True)
class Shopper:
    """Who asks, as far as the query says; none = unknown."""

    gender: str | None = None
    price_range: tuple[float, float] | None = None  # lowest, highest; in `currency` where that is known
    currency: str | None = None
    photographs: bool = False  # asks with a photo: what is known of users' photos holds for it
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Candidates:
    """N candidates, in any order. `table` has COLUMNS; `hashes` and `colours` are of their photos, or none."""

    visual_N: np.ndarray  # float64 cosine
    exact_N: np.ndarray  # bool: the query photo is a photo of this product
    table: pa.Table
    hashes_N32: np.ndarray | None = None  # uint8
    colours_N48: np.ndarray | None = None  # uint8
    hubness_N: np.ndarray | None = None  # float64, see serve.index.hubness; NaN = unknown, none = of all

    def __post_init__(self) -> None:
        assert len(self.visual_N) == len(self.exact_N) == self.table.num_rows
        if not np.isfinite(self.visual_N).all():
            raise ValueError("a visual score is NaN or infinite")

    @classmethod
    def of_rows(cls, visual: Sequence[float], exact: Sequence[bool], rows: Sequence[Mapping[str, Any]]) -> "Candidates":
        """From one mapping of COLUMNS a product; a column that is missing is unknown."""
        table = pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], schema=SCHEMA)
        return cls(np.asarray(visual, np.float64), np.asarray(exact, bool), table)

    def number(self, name: str) -> np.ndarray:
        """(N,) float64 column; NaN = unknown."""
        return np.asarray(self.table[name].to_numpy(), np.float64)

    def is_value(self, name: str, *values: str) -> np.ndarray:
        """(N,) bool: the text of the column is one of `values`; unknown is not."""
        column = self.table[name]
        return flags(pc.is_in(column, value_set=pa.array(values, column.type)))

    def known(self, name: str) -> np.ndarray:
        """(N,) bool: the column says something."""
        return flags(pc.is_valid(self.table[name]))

    def codes(self, name: str) -> np.ndarray:
        """(N,) int64: equal text, equal number; -1 = unknown."""
        encoded = self.table[name].combine_chunks().dictionary_encode()
        return np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), np.int64)

    def available_N(self) -> np.ndarray:
        """(N,) bool; unknown counts as available, as in the feed."""
        return flags(pc.fill_null(self.table["available"], True))

    def age_days(self, now: datetime) -> np.ndarray:
        """(N,) float64 days since updated_at, at least 0; NaN = unknown."""
        column = self.table["updated_at"]
        seconds = np.asarray(column.cast(pa.int64()).to_numpy(), np.float64) / 1e6  # microseconds; nulls become NaN
        return np.maximum(now.timestamp() - seconds, 0.0) / 86_400

    def below(self, category: str) -> np.ndarray:
        """(N,) bool: of this category path or below it."""
        path = category.strip("/")
        column = self.table["category"]
        either = pc.or_(pc.equal(column, path), pc.starts_with(column, f"{path}/"))
        return flags(either)


SCHEMA = pa.schema(
    [(name, pa.large_string()) for name in ("category", "currency", "gender", "brand", "seller", "group_id")]
    + [("price", pa.float64()), ("popularity", pa.float64()), ("available", pa.bool_())]
    + [("updated_at", pa.timestamp("us", tz="UTC"))]
)


def flags(values: pa.ChunkedArray) -> np.ndarray:
    """Arrow booleans as numpy's; null = false."""
    return np.asarray(pc.fill_null(values, False).to_numpy(), bool)
