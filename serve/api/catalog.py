"""What the catalog says about a product now: the release, with what came after it laid over."""

from collections.abc import Callable
from typing import Any

import numpy as np

from serve.index.inserts import Fresh
from serve.index.release import ProductStore


class Catalog:
    """Looks products up where they are told newest."""

    def __init__(self, release: ProductStore, fresh: Callable[[], Fresh]) -> None:
        self.release, self.fresh = release, fresh

    def store(self, product_id: str) -> ProductStore:
        """Which one knows the product, if any does."""
        fresh = self.fresh()
        return fresh.products if product_id in fresh.rows else self.release

    def product(self, product_id: str, place: tuple[str, int] | None = None) -> dict[str, Any] | None:
        """See ProductStore.product; `place` in the release."""
        store = self.store(product_id)
        return store.product(product_id, place if store is self.release else None)

    def embedding(self, product_id: str) -> np.ndarray | None:
        """See ProductStore.embedding."""
        return self.store(product_id).embedding(product_id)

    def photo_uri(self, product_id: str, image_id: str) -> str | None:
        """See ProductStore.photo_uri."""
        return self.store(product_id).photo_uri(product_id, image_id)

    def place(self, product_id: str) -> tuple[str, int] | None:
        """See ProductStore.place."""
        return self.store(product_id).place(product_id)
