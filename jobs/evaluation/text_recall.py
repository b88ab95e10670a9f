"""What texts add to photos, where a bundle reads them: queries by text, by photo and text, products of photo and description.

Letters: P products of the shelf, A products asked for, D numbers of an embedding.
"""

from collections.abc import Sequence

import numpy as np

from jobs.evaluation.photo_recall import SeenPhotos
from jobs.evaluation.queries import Query
from jobs.evaluation.scores import concatenated_scores, recall
from jobs.evaluation.shelf import Shelf
from serve.vision.bundle import Bundle
from serve.vision.fusion import fuse_query


def text_figures(
    queries: Sequence[Query], image_ids: Sequence[str], seen: SeenPhotos, shelf: Shelf, bundle: Bundle
) -> dict[str, float]:
    """Recall of queries by text and by photo and text; empty where the bundle has no text encoder or no product a text.

    A text query is a product's last text (its description), of every product asked for; a query of photo and text is the
    product's own crop with its first text (its title), fused with the bundle's weight.
    """
    config = bundle.config.text
    told = {row: product.texts for row, product in enumerate(shelf.products) if product.texts}
    if config is None or not told:
        return {}
    titles_PD, descriptions_PD = (text_vectors(bundle, told, len(shelf.products), place) for place in (0, -1))
    rows = {product.product_id: row for row, product in enumerate(shelf.products)}
    asked = [
        (rows[product_id], image_ids[photo], seen.features[seen.true_crops_of(query, photo, number)[0]].embedding)
        for photo, query in enumerate(queries)
        for number, product_id in enumerate(query.product_ids)
        if rows.get(product_id) in told
    ]
    asked = [one for one in asked if np.isfinite(shelf.scores(one[2][None], one[1])[0, one[0]])]  # it has another photo than this
    if not asked:
        return {}
    true_A = np.array([row for row, _, _ in asked])
    photo_AP = np.concatenate([shelf.scores(photo_D[None], image_id) for _, image_id, photo_D in asked])
    fused_AP = np.concatenate(
        [
            shelf.scores(fuse_query(photo_D, titles_PD[row], config.query_weight)[None], image_id)
            for row, image_id, photo_D in asked
        ]
    )
    distinct = np.unique(true_A)
    by_description = shelf.scores(descriptions_PD[distinct])
    photos_AD = np.stack([photo_D for _, _, photo_D in asked])
    both_AP = concatenated_scores(photo_AP, photos_AD, descriptions_PD, config.query_weight)
    figures = {
        "text_recall_at_1": recall(by_description, distinct, 1),
        "text_recall_at_10": recall(by_description, distinct, 10),
        "title_recall_at_1": recall(shelf.scores(titles_PD[true_A]), true_A, 1),
        "crop_recall_at_1": recall(photo_AP, true_A, 1),
        "photo_text_recall_at_1": recall(fused_AP, true_A, 1),
        "concatenated_product_recall_at_1": recall(both_AP, true_A, 1),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def text_vectors(bundle: Bundle, told: dict[int, tuple[str, ...]], num_products: int, place: int) -> np.ndarray:
    """(P, D) unit vectors of one text of each product; zeros where it has none."""
    vectors_PD = np.zeros((num_products, bundle.dim), np.float32)
    vectors_PD[list(told)] = bundle.encode_texts([texts[place] for texts in told.values()])
    return vectors_PD
