"""Pixels that networks are compared on: whole catalog photos, and what users' photos ask for.

Letters: N catalog photos, Q query crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.config import Config, JobError
from jobs.evaluation.queries import Query, load_queries
from jobs.evaluation.shelf import choose_products, read_photos
from jobs.raydata.session import progress
from serve.vision.crop import BoxError, crops_of_drawn, cut
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError


@dataclass(frozen=True)
class PhotoCrops:
    """(H, W, 3) uint8 RGB each. `photos`: the queries' whole photos; `queries`: the crops in them that ask for a product."""

    catalog: list[np.ndarray]
    products_N: np.ndarray
    photos: list[np.ndarray]
    queries: list[np.ndarray]
    asked_Q: np.ndarray


def read_crops(config: Config, max_images: int) -> PhotoCrops:
    """Up to about `max_images` catalog photos, in a seeded order, and evaluate.queries, where they are set. Raises JobError."""
    evaluate = config.evaluate
    queries = (
        load_queries(evaluate.queries, evaluate.queries_where, evaluate.max_queries, evaluate.seed) if evaluate.queries else []
    )
    products = choose_products(config, {product_id for query in queries for product_id in query.product_ids}, max_images)
    uris = [(row, uri) for row, product in enumerate(products) for uri in product.uris]
    uris = [uris[place] for place in np.random.default_rng(evaluate.seed).permutation(len(uris))]
    catalog: list[np.ndarray] = []
    rows: list[int] = []
    with progress("catalog_photos", len(uris), "photos") as shown:
        for some, _, pixels in read_photos(config, uris):
            rows += some
            catalog += pixels
            shown.add(len(some))
    if len(catalog) < 2:
        raise JobError(
            f"{len(catalog)} of {len(uris)} catalog photos can be read, such as {uris[0][1]}; is the feed still there?"
        )
    known = {product.product_id: row for row, product in enumerate(products)}
    photos, crops, asked = query_crops(config, queries, known)
    return PhotoCrops(catalog, np.array(rows), photos, crops, np.array(asked, np.int64))


def query_crops(
    config: Config, queries: Sequence[Query], known: dict[str, int]
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Whole photos, crops (the known box, else the photo) and the rows of the products they ask for."""
    photos, crops, asked = [], [], []
    with GuardedDecoder(config.decode) as decoder:
        for query in queries:
            try:
                photos.append(decoder.decode(query.path.read_bytes()))
                height, width = photos[-1].shape[:2]
                drawn = crops_of_drawn(width, height, query.boxes_N4)
            except (OSError, ImageError, BoxError) as error:
                raise JobError(f"evaluate.queries: {query.path}: {error}") from error
            for number, product_id in enumerate(query.product_ids):
                if product_id in known:
                    crops.append(cut(photos[-1], drawn[number + 1 if query.boxes_N4 else 0]))
                    asked.append(known[product_id])
    return photos, crops, asked
