"""One bundle, measured: how well it finds, sees, knows what it sees, and stands what users do to photos."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.config import Config, JobError
from jobs.evaluation.boxes import box_figures
from jobs.evaluation.bundle_recall import Asked, ask, recall_figures, slices
from jobs.evaluation.calibration import ReliabilityBin, expected_calibration_error, reliability
from jobs.evaluation.curves import Curve, measure_curves, spread
from jobs.evaluation.domains import DomainGap, domain_gap
from jobs.evaluation.photo_recall import see_photos
from jobs.evaluation.queries import Query
from jobs.evaluation.shelf import Shelf, ShelfProduct, fill_shelf
from jobs.evaluation.text_recall import text_figures
from jobs.raydata.session import progress
from jobs.runs import pairs
from serve.vision.bundle import Bundle
from serve.vision.detector import build_detector
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError, image_id_of

log = logging.getLogger(__name__)

LEAST_SCORE = 0.01  # boxes below the bundle's own threshold count for average precision, down to here


@dataclass(frozen=True)
class BundleQuality:
    """Everything that reports show of a bundle."""

    name: str
    digest: str
    figures: dict[str, float]
    slices: dict[str, dict[str, dict[str, float]]]
    curves: dict[str, Curve]
    reliability: list[ReliabilityBin]
    gap: DomainGap
    asked: list[Asked]
    shelf: Shelf


def measure_bundle(
    config: Config, name: str, folder: Path, products: Sequence[ShelfProduct], queries: Sequence[Query]
) -> BundleQuality:
    """Measures the bundle in `folder` on photos with known answers. Raises JobError, BundleError."""
    bundle = Bundle.load(folder, config.runtime)
    shelf = fill_shelf(config, products, bundle)
    image_ids = ids_of(queries)
    with progress("query_photos", len(queries), "photos") as shown:
        seen = see_photos(queries, bundle, config.decode, shown.add)
    asked = ask(queries, image_ids, seen, seen.embeddings_QD, shelf)
    if not asked:
        raise JobError("evaluate.queries: their products have no other photo in the catalog than the queries themselves")
    figures = recall_figures(asked) | {"catalog_photos": len(shelf.image_ids), "catalog_products": len(shelf.products)}
    gap = domain_gap(queries, image_ids, seen, shelf)
    figures |= (
        gap.figures() | found_boxes(config, folder, bundle, queries) | text_figures(queries, image_ids, seen, shelf, bundle)
    )
    bins = category_bins(asked, bundle.labels)
    if bins:
        num = sum(one.num for one in bins)
        figures["category_accuracy"] = round(sum(one.num * one.accuracy for one in bins) / num, 4)
        figures["category_ece"] = round(expected_calibration_error(bins), 4)
    kinds = config.evaluate_bundle.curves
    few = spread(queries, config.evaluate_bundle.curve_queries)
    curves = measure_curves(config, kinds, [queries[i] for i in few], [image_ids[i] for i in few], bundle, shelf) if kinds else {}
    log.info("bundle=%s %s", name, pairs(figures))
    return BundleQuality(name, bundle.digest, figures, slices(asked), curves, bins, gap, asked, shelf)


def ids_of(queries: Sequence[Query]) -> list[str]:
    """The image_id of each photo. Raises JobError for one that is not there."""
    try:
        return [image_id_of(query.path.read_bytes()) for query in queries]
    except OSError as error:
        raise JobError(f"evaluate.queries: {error.filename}: {error.strerror}") from error


def category_bins(asked: Sequence[Asked], labels: Sequence[str]) -> list[ReliabilityBin]:
    """Of predictions for products whose category, or one above it, is among the bundle's `labels`; empty where there are none."""
    known = [
        (one.predicted_prob, is_in(one.category, one.predicted))
        for one in asked
        if one.category and one.predicted and any(is_in(one.category, label) for label in labels)
    ]
    if not known:
        return []
    probs, right = zip(*known, strict=True)
    return reliability(np.array(probs, np.float64), np.array(right))


def is_in(category: str, label: str) -> bool:
    """Whether `category` is the node `label` of the tree, or below it."""
    return f"{category}/".startswith(f"{label}/")


def found_boxes(config: Config, folder: Path, bundle: Bundle, queries: Sequence[Query]) -> dict[str, float]:
    """Average precision at IoU 0.5, recall and precision of boxes of items, whatever they are; empty where none are known."""
    boxed = [query for query in queries if query.boxes_N4]
    spec = bundle.config.detector
    if not boxed or spec.kind == "none":
        return {}
    all_scores = spec.model_copy(update={"min_score": LEAST_SCORE})
    detector = build_detector(all_scores, folder, config.runtime, bundle.cache)
    found, true = [], []
    with GuardedDecoder(config.decode) as decoder, progress("boxes", len(boxed), "photos") as shown:
        for query in boxed:
            try:
                (seen,) = detector.detect([decoder.decode(query.path.read_bytes())])
            except ImageError as error:
                raise JobError(f"evaluate.queries: {query.path}: {error}") from error
            found.append((seen.scores, seen.boxes))
            true.append(np.array(query.boxes_N4, np.float32))
            shown.add(1)
    measured = box_figures(found, true, min_score=spec.min_score)
    return {
        "boxes_average_precision": round(measured.average_precision, 4),
        "boxes_recall": round(measured.recall, 4),
        "boxes_precision": round(measured.precision, 4),
        "boxes": measured.num_true,
    }
