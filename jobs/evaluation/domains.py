"""How far user photos lie from catalog photos in a bundle's space, and what the cheapest remedy does about it.

Letters: Q query crops, N catalog crops, A products asked for, D numbers of an embedding.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from jobs.evaluation.bundle_recall import ask, recall_figures
from jobs.evaluation.photo_recall import SeenPhotos
from jobs.evaluation.queries import Query
from jobs.evaluation.shelf import Shelf, centred


@dataclass(frozen=True)
class DomainGap:
    """The gap, in recall and in space. `studio_*`: catalog photos that ask for their product's other photos."""

    user_recall_at_1: float
    studio_recall_at_1: float | None  # none where products have one photo
    recall_gap: float | None  # studio minus user
    centred_recall_at_1: float  # user photos, each domain's mean taken from its vectors
    centred_recall_at_5: float
    closed_frac: float | None  # share of recall_gap that centring closes
    centroid_distance: float  # between the means of both domains; unit vectors
    shift_frac: float  # of the squared distance between a user photo and its product's catalog photo: what all have in common

    def figures(self) -> dict[str, float]:
        """Those that are known."""
        return {f"domain.{name}": round(value, 4) for name, value in asdict(self).items() if value is not None}


def domain_gap(queries: Sequence[Query], image_ids: Sequence[str], seen: SeenPhotos, shelf: Shelf) -> DomainGap:
    """Measured on the photos' own crops. The users' mean is that of the other half of the photos: none is centred by itself."""
    embeddings_QD = seen.embeddings_QD
    photo_Q = np.empty(len(embeddings_QD), np.int64)
    for photo, crops in enumerate(seen.found):
        photo_Q[[*crops, *(seen.drawn[photo])]] = photo
    centred_QD = embeddings_QD.copy()
    for half in (0, 1):
        own, other = photo_Q % 2 == half, photo_Q % 2 != half
        if other.any():
            centred_QD[own] = centred(embeddings_QD[own], embeddings_QD[other].mean(axis=0))
    plain = recall_figures(ask(queries, image_ids, seen, embeddings_QD, shelf))
    centre_D = shelf.vectors_ND.mean(axis=0)
    better = recall_figures(ask(queries, image_ids, seen, centred_QD, shelf.shifted(centre_D)))
    studio = studio_recall_at_1(shelf)
    gap = None if studio is None else studio - plain["recall_at_1"]
    shift_AD = pair_differences(queries, seen, shelf)
    return DomainGap(
        user_recall_at_1=plain["recall_at_1"],
        studio_recall_at_1=studio,
        recall_gap=gap,
        centred_recall_at_1=better["recall_at_1"],
        centred_recall_at_5=better["recall_at_5"],
        closed_frac=(better["recall_at_1"] - plain["recall_at_1"]) / gap if gap is not None and gap > 0 else None,
        centroid_distance=float(np.linalg.norm(embeddings_QD.mean(axis=0) - centre_D)),
        shift_frac=float(np.square(shift_AD.mean(axis=0)).sum() / max(np.square(shift_AD).sum(axis=1).mean(), 1e-12)),
    )


def studio_recall_at_1(shelf: Shelf) -> float | None:
    """Whole catalog photos of products with several: how often another photo of the product is the nearest."""
    wholes = np.flatnonzero(shelf.is_whole_N)
    right = []
    for crop in wholes:
        product, image_id = shelf.products_N[crop], shelf.image_ids[shelf.photos_N[crop]]
        scores_P = shelf.scores(shelf.vectors_ND[crop : crop + 1], image_id)[0]
        if np.isfinite(scores_P[product]):
            right.append(scores_P.argmax() == product)
    return float(np.mean(right)) if right else None


def pair_differences(queries: Sequence[Query], seen: SeenPhotos, shelf: Shelf) -> np.ndarray:
    """(A, D) vector of each asked product's crop in its photo minus the mean of its catalog photos."""
    rows = {product.product_id: row for row, product in enumerate(shelf.products)}
    sums_PD = np.add.reduceat(shelf.vectors_ND, shelf.starts, axis=0)
    means_PD = sums_PD / np.diff([*shelf.starts, len(shelf.vectors_ND)])[:, None]
    return np.array(
        [
            seen.features[seen.true_crops_of(query, photo, number)[0]].embedding - means_PD[rows[product_id]]
            for photo, query in enumerate(queries)
            for number, product_id in enumerate(query.product_ids)
            if product_id in rows
        ]
    )
