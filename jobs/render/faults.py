"""Declared faults of a generated feed: bad rows, files that are no photo, one photo under two products.

What was put in is written to faults.json beside the feed, under the reasons that curate_catalog and embed_images give,
so that what they reject can be checked exactly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.render.products import RenderedProduct

BAD_ROW_FRAC = 0.025  # of the products: 6 of the default 240, below FeedConfig.max_reject_frac
BAD_FILES_FRAC = 0.01  # products with one more photo that is damaged; as many with a photo of a sibling

Row = dict[str, Any]


def missing_product_id(row: Row) -> Row:
    return row | {"product_id": None}


def no_image(row: Row) -> Row:
    return row | {"image_uris": []}


def bad_price(row: Row) -> Row:
    return row | {"price": -abs(row["price"])}


def unknown_currency(row: Row) -> Row:
    return row | {"currency": "QQQ"}


def broken_category(row: Row) -> Row:
    return row | {"category": row["category"].replace("/", "//", 1)}


BAD_ROWS: dict[str, Callable[[Row], Row]] = {
    "missing_product_id": missing_product_id,
    "no_image": no_image,
    "bad_price": bad_price,
    "unknown_currency": unknown_currency,
    "broken_category": broken_category,
}


@dataclass(frozen=True)
class BadFile:
    """One more photo of a product. `kind`: truncated or not_an_image (made from `source_id`'s front photo), or same_bytes."""

    product_id: str
    kind: str
    source_id: str

    @property
    def image_uri(self) -> str:
        return f"images/{self.product_id}-extra.jpg"

    @property
    def source_uri(self) -> str:
        return f"images/{self.source_id}-0.jpg"

    def content(self, source: bytes) -> bytes:
        """Its bytes, from those of the source photo."""
        if self.kind == "not_an_image":
            return b"<html><body>503 Service Unavailable</body></html>\n"
        return source[: len(source) * 3 // 5] if self.kind == "truncated" else source


def add_bad_rows(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """The rows with bad copies strewn in, and what was done: [{line (from 0), product_id, kind}]."""
    rng = np.random.default_rng([seed, 3, 1])
    kinds = list(BAD_ROWS)
    bad: dict[int, list[tuple[str, Row]]] = {}
    for number in range(round(len(rows) * BAD_ROW_FRAC)):
        at = int(rng.integers(len(rows)))
        kind = kinds[number % len(kinds)]
        bad.setdefault(at, []).append((kind, BAD_ROWS[kind](rows[at] | {"product_id": f"bad-{number:05d}"})))
    mixed: list[Row] = []
    declared: list[Row] = []
    for at, row in enumerate(rows):
        mixed.append(row)
        for kind, bad_row in bad.get(at, []):
            declared.append({"line": len(mixed), "product_id": bad_row["product_id"], "kind": kind})
            mixed.append(bad_row)
    return mixed, declared


def choose_bad_files(products: Sequence[RenderedProduct], seed: int) -> list[BadFile]:
    """Products that get a damaged photo more, and sibling pairs that share a photo byte for byte; no product twice."""
    rng = np.random.default_rng([seed, 4, 1])
    num = max(1, round(len(products) * BAD_FILES_FRAC))
    first_of: dict[str, RenderedProduct] = {}
    files: dict[str, BadFile] = {}
    for product in products:
        style = first_of.setdefault(product.group_id, product)
        if style is not product and len(files) < num:
            files[product.product_id] = BadFile(product.product_id, "same_bytes", style.product_id)
    free = [product for product in products if product.product_id not in files]
    for number, at in enumerate(rng.permutation(len(free))[: 2 * num]):
        product_id = free[at].product_id
        files[product_id] = BadFile(product_id, ("truncated", "not_an_image")[number % 2], product_id)
    return list(files.values())
