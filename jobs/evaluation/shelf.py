"""Catalog photos as one bundle sees them, searched exactly: what a bundle is measured on, without an index.

Letters: N catalog crops (a product's side by side), P products, Q query crops, D numbers of an embedding.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jobs.config import Config, JobError
from jobs.raydata.delta import pinned_version
from jobs.raydata.fetch import FetchError, fetch_rules
from jobs.raydata.polite import PoliteFetcher
from jobs.raydata.session import progress
from jobs.tables import Tables, read_table
from serve.vision.bundle import Bundle
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError, image_id_of

log = logging.getLogger(__name__)

ANALYSED_AT_ONCE = 32  # photos


@dataclass(frozen=True)
class ShelfProduct:
    """What reports say of a product. `style`: its group_id, or itself; siblings share one. `uris`: its photos, in order.

    `texts`: title and description, where they say something.
    """

    product_id: str
    category: str | None
    style: str
    uris: tuple[str, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shelf:
    """Vectors of catalog crops; crop 0 of a photo is the whole."""

    products: tuple[ShelfProduct, ...]
    vectors_ND: np.ndarray  # unit, float32
    products_N: np.ndarray  # int64, sorted
    photos_N: np.ndarray  # int64, sorted
    is_whole_N: np.ndarray  # bool: crop 0
    image_ids: tuple[str, ...]  # of the photos

    def scores(self, vectors_QD: np.ndarray, without: str | None = None) -> np.ndarray:
        """(Q, P) best cosine of each product's crops. A photo of the image_id `without` does not count: it is the query."""
        cosines_QN = vectors_QD @ self.vectors_ND.T
        if without in self.image_ids:
            cosines_QN[:, np.array([image_id == without for image_id in self.image_ids])[self.photos_N]] = -np.inf
        best: np.ndarray = np.maximum.reduceat(cosines_QN, self.starts, axis=1)
        return best

    @property
    def starts(self) -> np.ndarray:
        """(P,) first crop of each product."""
        return np.searchsorted(self.products_N, np.arange(len(self.products)))

    def shifted(self, centre_D: np.ndarray) -> "Shelf":
        """The same crops with `centre_D` taken from every vector."""
        return replace(self, vectors_ND=centred(self.vectors_ND, centre_D))


def centred(vectors_ND: np.ndarray, centre_D: np.ndarray) -> np.ndarray:
    """Unit vectors without a common part, of unit length again."""
    moved_ND = vectors_ND - centre_D
    moved: np.ndarray = (moved_ND / np.maximum(np.linalg.norm(moved_ND, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    return moved


def choose_products(config: Config, asked: set[str], max_images: int) -> list[ShelfProduct]:
    """Products with their photos, by id: all that are `asked` for, and a seeded sample of the others, up to `max_images` photos.

    Raises JobError where none of `asked` is there, or nothing at all.
    """
    tables = Tables(config.store.tables)
    versions = {name: pinned_version(tables, name, written_by="jobs.curate_catalog") for name in ("products", "images")}
    images = read_table(tables, "images", ["product_id", "position", "image_uri"], versions["images"])
    uris: dict[str, list[str]] = {}
    for row in images.sort_by([("product_id", "ascending"), ("position", "ascending")]).to_pylist():
        uris.setdefault(row["product_id"], []).append(row["image_uri"])
    rows = read_table(tables, "products", ["product_id", "title", "description", "category", "group_id"], versions["products"])
    products = [
        ShelfProduct(
            product_id=row["product_id"],
            category=row["category"],
            style=row["group_id"] or row["product_id"],
            uris=tuple(uris[row["product_id"]]),
            texts=tuple(text for text in (row["title"], row["description"]) if text and text.strip()),
        )
        for row in rows.sort_by("product_id").to_pylist()
        if row["product_id"] in uris
    ]
    chosen = [product for product in products if product.product_id in asked]
    if not products:
        raise JobError(f"{tables.root}: no product has a photo; run jobs.curate_catalog on a feed first")
    if asked and not chosen:
        raise JobError(f"evaluate.queries: none of their {len(asked)} products is among the {len(products)} of the catalog")
    others = [product for product in products if product.product_id not in asked]
    num_photos = sum(len(product.uris) for product in chosen)
    for place in np.random.default_rng(config.evaluate.seed).permutation(len(others)):
        num_photos += len(others[place].uris)
        if num_photos > max_images:
            break
        chosen.append(others[place])
    return sorted(chosen, key=lambda product: product.product_id)


def fill_shelf(config: Config, products: Sequence[ShelfProduct], bundle: Bundle) -> Shelf:
    """Fetches, decodes, analyses every photo; unreadable ones are left out and counted. Raises JobError where none is left."""
    photos = [(row, uri) for row, product in enumerate(products) for uri in product.uris]
    vectors: list[np.ndarray] = []
    crops: list[tuple[int, int, bool]] = []  # row of the product, number of the photo, whole
    image_ids: list[str] = []
    with progress("catalog_photos", len(photos), "photos") as shown:
        for rows, ids, pixels in read_photos(config, photos):
            for row, image_id, features in zip(rows, ids, bundle.analyse(pixels), strict=True):
                crops += [(row, len(image_ids), place == 0) for place in range(len(features))]
                vectors += [feature.embedding for feature in features]
                image_ids.append(image_id)
            shown.add(len(rows))
    if not image_ids:
        raise JobError(f"none of {len(photos)} catalog photos can be read, such as {photos[0][1]}; is the feed still there?")
    if len(image_ids) < len(photos):
        log.warning("catalog_photos=%d unreadable=%d", len(photos), len(photos) - len(image_ids))
    rows_N, photos_N, is_whole_N = (np.array(column) for column in zip(*crops, strict=True))
    kept, products_N = np.unique(rows_N, return_inverse=True)
    return Shelf(
        products=tuple(products[row] for row in kept),
        vectors_ND=np.stack(vectors),
        products_N=products_N.astype(np.int64),
        photos_N=photos_N,
        is_whole_N=is_whole_N,
        image_ids=tuple(image_ids),
    )


def read_photos(config: Config, photos: Sequence[tuple[int, str]]) -> Iterator[tuple[list[int], list[str], list[np.ndarray]]]:
    """Rows, image ids and (H, W, 3) uint8 pixels of the readable photos, ANALYSED_AT_ONCE at most, in their order."""
    with GuardedDecoder(config.decode) as decoder, PoliteFetcher(fetch_rules(config)) as fetcher:
        for start in range(0, len(photos), ANALYSED_AT_ONCE):
            some = photos[start : start + ANALYSED_AT_ONCE]
            rows: list[int] = []
            ids: list[str] = []
            pixels: list[np.ndarray] = []
            for (row, _), fetched in zip(some, [fetcher.submit(uri) for _, uri in some], strict=True):
                try:
                    data = fetched.result().whole
                    pixels.append(decoder.decode(data))
                except (FetchError, ImageError):
                    continue  # counted by the caller
                rows.append(row)
                ids.append(image_id_of(data))
            if rows:
                yield rows, ids, pixels
