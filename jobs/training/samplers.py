"""Batches of P products x K photos, half from the shop and half from users, siblings together; or of single photos."""

from collections.abc import Iterator

import numpy as np

from jobs.training.crops import USER


class ProductSampler:
    """Batches of indexes: `batch_products` distinct products, `batch_images` photos of each, domains in turn.

    Args:
        products_N: (N,) int, the product of each photo.
        domains_N: (N,) int, where it was taken: shop or street.
        groups_N: (N,) the style of each photo's product: products of one style differ in colour alone, and as neighbours
            in a batch they are the hard negatives that teach the colour.
        batch_products, batch_images: P and K. A product with fewer than K photos repeats some.

    Raises:
        ValueError: fewer than P products.
    """

    def __init__(
        self, products_N: np.ndarray, domains_N: np.ndarray, groups_N: np.ndarray, batch_products: int, batch_images: int
    ) -> None:
        self.batch_products, self.batch_images = batch_products, batch_images
        self.photos = {
            int(product): [np.flatnonzero((products_N == product) & (domains_N == domain)) for domain in np.unique(domains_N)]
            for product in np.unique(products_N)
        }
        first = {int(product): row for row, product in reversed(list(enumerate(products_N)))}
        self.groups: dict[object, list[int]] = {}
        for product, row in sorted(first.items()):
            self.groups.setdefault(groups_N[row], []).append(product)
        if len(self.photos) < batch_products:
            raise ValueError(f"batch_products={batch_products}: the training set has {len(self.photos)} products")

    def __len__(self) -> int:
        return len(self.photos) // self.batch_products

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """One pass over the products: (P * K,) int64 indexes a batch, the photos of one product in a row."""
        styles = list(self.groups.values())
        order = [product for index in rng.permutation(len(styles)) for product in rng.permutation(styles[index])]
        for start in range(0, len(self) * self.batch_products, self.batch_products):
            yield np.concatenate([self.photos_of(int(p), rng) for p in order[start : start + self.batch_products]])

    def photos_of(self, product: int, rng: np.random.Generator) -> np.ndarray:
        """K photos of one product, domains in turn; each domain's photos are used up before one repeats."""
        domains = [photos for photos in self.photos[product] if len(photos)]
        counts = [self.batch_images // len(domains) + (i < self.batch_images % len(domains)) for i in range(len(domains))]
        picked = [
            np.concatenate([rng.permutation(photos) for _ in range(-(-count // len(photos)))])[:count]
            for photos, count in zip(domains, counts, strict=True)
            if count
        ]
        return np.concatenate(picked)


class PhotoSampler:
    """Batches of indexes: every user photo once a pass, and `shop_frac` of each batch catalog photos, drawn at random.

    For losses with a learned proxy a product, which need no pairs inside a batch. Without user photos, every photo once a pass.

    Raises:
        ValueError: fewer photos than one batch.
    """

    def __init__(self, domains_N: np.ndarray, batch_size: int, shop_frac: float) -> None:
        users_N = domains_N == USER
        self.photos = np.flatnonzero(users_N) if users_N.any() else np.arange(len(domains_N))
        self.shop = np.flatnonzero(~users_N) if users_N.any() else np.empty(0, np.int64)
        self.num_shop = round(shop_frac * batch_size) if len(self.shop) else 0
        self.num_photos = batch_size - self.num_shop
        if len(self.photos) < self.num_photos:
            raise ValueError(f"a batch of {batch_size} photos: the training set has {len(self.photos)}")

    def __len__(self) -> int:
        return len(self.photos) // self.num_photos

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """One pass: (batch_size,) int64 indexes a batch."""
        order = rng.permutation(self.photos)
        for start in range(0, len(self) * self.num_photos, self.num_photos):
            shop = rng.choice(self.shop, self.num_shop, replace=self.num_shop > len(self.shop))
            yield np.concatenate([order[start : start + self.num_photos], shop]).astype(np.int64)
