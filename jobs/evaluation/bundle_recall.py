"""How well a bundle finds products asked for by photos, without an index: recall, average precision, gain; whole and sliced.

Letters: P products of the shelf, Q query crops, D numbers of an embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jobs.evaluation.judgments import BOOTSTRAPS, Interval
from jobs.evaluation.metrics import average_precision, discounted
from jobs.evaluation.photo_recall import SeenPhotos
from jobs.evaluation.queries import Query
from jobs.evaluation.shelf import Shelf

K = 10
LISTED = 100  # products of a ranked list that average precision looks at
SIBLING_GAIN = 0.5  # of another product of the style, where the product itself is worth 1
SIZES = {"below 5 % of the photo": 0.05, "5 to 20 %": 0.2, "above 20 %": 1.0}  # of a known box: name, largest share


@dataclass(frozen=True)
class Asked:
    """A product that a photo asks for, and what came back."""

    query: Query
    number: int
    category: str | None
    rank: int  # 0 = first
    precision: float  # average precision of the list; right are the product and its siblings
    gain: float  # nDCG@10
    margin: float  # cosine of the product minus that of the best other one
    nearest: tuple[tuple[int, float], ...]  # rows of the shelf and cosines, best first
    predicted: str | None  # category, with its probability
    predicted_prob: float | None
    box_frac: float | None  # of its known box, of the photo's area

    @cached_property
    def size(self) -> str | None:
        """The slice of its box."""
        return None if self.box_frac is None else next(name for name, most in SIZES.items() if self.box_frac <= most)


def ask(
    queries: Sequence[Query], image_ids: Sequence[str], seen: SeenPhotos, embeddings_QD: np.ndarray, shelf: Shelf
) -> list[Asked]:
    """Every product that the photos ask for and that is on the shelf.

    As in a search, a product's score is the best cosine of its crops, over all crops of the photo, or over the one crop that was
    found where the product is, if that is known. `image_ids`: of the photos as they came; the catalog's own copy does not count.
    """
    rows = {product.product_id: row for row, product in enumerate(shelf.products)}
    siblings: dict[str, list[str]] = {}
    for product in shelf.products:
        siblings.setdefault(product.style, []).append(product.product_id)
    asked = []
    for photo, query in enumerate(queries):
        whole = seen.features[seen.found[photo][0]].crop.box
        for number, product_id in enumerate(query.product_ids):
            row = rows.get(product_id)
            crops = list(seen.crops_of(query, photo, number))
            scores_P = shelf.scores(embeddings_QD[crops], image_ids[photo]).max(axis=0)
            if row is None or not np.isfinite(scores_P[row]):
                continue  # not in the catalog, or only as this very photo
            best = np.argsort(-scores_P, kind="stable")[:LISTED]
            listed = [shelf.products[place].product_id for place in best]
            gains = dict.fromkeys(siblings[shelf.products[row].style], SIBLING_GAIN) | {product_id: 1.0}
            predicted = seen.features[seen.true_crops_of(query, photo, number)[0]]
            others_P = np.delete(scores_P, row)
            asked.append(
                Asked(
                    query=query,
                    number=number,
                    category=shelf.products[row].category,
                    rank=int((scores_P > scores_P[row]).sum()),
                    precision=average_precision(listed, gains),
                    gain=discounted(listed, gains, K),
                    margin=float(scores_P[row] - others_P.max()) if len(others_P) else 1.0,
                    nearest=tuple((int(place), float(scores_P[place])) for place in best[:K]),
                    predicted=predicted.category,
                    predicted_prob=predicted.category_prob,
                    box_frac=share_of(query.boxes_N4[number], whole) if query.boxes_N4 else None,
                )
            )
    return asked


def share_of(box: Sequence[float], whole: Sequence[float]) -> float:
    """Of the photo's area; at most 1."""
    return min(1.0, (box[2] - box[0]) * (box[3] - box[1]) / ((whole[2] - whole[0]) * (whole[3] - whole[1])))


def recall_figures(asked: Sequence[Asked]) -> dict[str, float]:
    """Shares and means over everything asked for, of which there is something."""
    figures = {f"recall_at_{k}": float(np.mean([one.rank < k for one in asked])) for k in (1, 5, 10)}
    figures["mean_average_precision"] = float(np.mean([one.precision for one in asked]))
    figures["ndcg_at_10"] = float(np.mean([one.gain for one in asked]))
    return {name: round(value, 4) for name, value in figures.items()} | {"asked": len(asked)}


def slices(asked: Sequence[Asked]) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by category, domain of the photo, size of the box and how much of the product is seen.

    Each slice's name -> its values -> their figures.
    """
    keys = {
        "category": [one.category for one in asked],
        "domain": [one.query.domain for one in asked],
        "box": [one.size for one in asked],
        "visibility": [one.query.visibility(one.number) for one in asked],
    }
    found = {}
    for name, values in keys.items():
        named = {value for value in values if value is not None}
        ordered: Iterable[str] = [size for size in SIZES if size in named] if name == "box" else sorted(named)
        found[name] = {
            value: recall_figures([one for one, own in zip(asked, values, strict=True) if own == value]) for value in ordered
        }
    return {name: by_value for name, by_value in found.items() if by_value}


def recall_change(baseline: Sequence[Asked], other: Sequence[Asked], seed: int) -> Interval:
    """Recall@1 of `other` minus that of `baseline` on the same photos, drawn again together (paired bootstrap)."""
    ours, theirs = ({(one.query.path, one.number): one.rank == 0 for one in side} for side in (other, baseline))
    shared = sorted(ours.keys() & theirs.keys())
    change_A = np.array([float(ours[key]) - float(theirs[key]) for key in shared])
    rows = np.random.default_rng(seed).integers(0, len(change_A), (BOOTSTRAPS, len(change_A)))
    low, high = np.quantile(change_A[rows].mean(axis=1), [0.025, 0.975])
    return Interval(float(change_A.mean()), float(low), float(high), len(change_A))
