"""Looks of a release: what goes with each product, read where it lies on disk.

    looks.arrow    one row a product, sorted by product_id: the products of its look, best first

A product without a row (it came after the release) has the look of the product that it looks most like.
"""

import bisect
from pathlib import Path

import pyarrow as pa

from serve.index.manifest import ReleaseError
from serve.index.records import read_batch, write_table

LOOKS_FILE = "looks.arrow"
LOOKS = pa.schema(
    [
        pa.field("product_id", pa.large_string(), nullable=False),
        pa.field("look", pa.list_(pa.large_string()), nullable=False),
    ]
)


def write_looks(path: Path, looks: dict[str, list[str]]) -> None:
    """One row a product; the ids of its look, best first."""
    ids = sorted(looks, key=str.encode)
    write_table(path, pa.table({"product_id": ids, "look": [looks[product_id] for product_id in ids]}, schema=LOOKS))


class Looks:
    """An open looks.arrow, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Raises ReleaseError where the file is none."""
        try:
            batch = read_batch(path, LOOKS)
        except (OSError, pa.ArrowInvalid) as error:
            raise ReleaseError(f"{path}: no looks of this format ({error}); train them again") from error
        self.ids, self.looks = batch["product_id"], batch["look"]

    def of(self, product_id: str) -> list[str] | None:
        """Ids of its look, best first; None where the product has no row."""
        place = bisect.bisect_left(range(len(self.ids)), product_id.encode(), key=lambda i: self.ids[i].as_py().encode())
        if place == len(self.ids) or self.ids[place].as_py() != product_id:
            return None
        found: list[str] = self.looks[place].as_py()
        return found
