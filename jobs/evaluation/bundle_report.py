"""The report of evaluate_bundle: one page with tables, curves and the worst failures; the same figures as JSON beside it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from jobs.evaluation.bundle_quality import BundleQuality
from jobs.evaluation.bundle_recall import Asked
from jobs.evaluation.calibration import ReliabilityBin
from jobs.evaluation.curves import draw_curves
from jobs.evaluation.judgments import Interval
from jobs.evaluation.pictures import data_uri, figure_uri, framed_photo, read_thumbnail, shown_at, tile_sheet
from jobs.evaluation.report import QUERY_PX, THUMBNAIL_PX, environment
from jobs.evaluation.shelf import Shelf

SHOWN = 5  # products of a failure
TABLE = {
    "recall_at_1": "Recall@1", "recall_at_5": "@5", "recall_at_10": "@10", "mean_average_precision": "mAP",
    "ndcg_at_10": "nDCG@10", "boxes_average_precision": "boxes mAP@.5", "category_accuracy": "category right",
    "category_ece": "ECE", "text_recall_at_10": "text Recall@10", "photo_text_recall_at_1": "photo + text Recall@1",
    "domain.recall_gap": "domain gap", "domain.centred_recall_at_1": "Recall@1 centred",
}  # fmt: skip


def write_bundle_report(
    folder: Path, measured: Sequence[BundleQuality], changes: Sequence[Interval], failures: int
) -> tuple[Path, Path]:
    """`report.html` and `report.json` in `folder`. `changes`: Recall@1 of each bundle behind the first, against the first."""
    folder.mkdir(parents=True, exist_ok=True)
    page = environment().get_template("bundle_report.html").render(
        columns=TABLE,
        bundles=measured,
        changes=[None, *changes],
        curves=curve_pictures(measured),
        reliability={one.name: reliability_picture(one.reliability) for one in measured if one.reliability},
        failures={one.name: [failure_row(asked, one.shelf) for asked in worst(one.asked, failures)] for one in measured},
    )  # fmt: skip
    (folder / "report.html").write_text(page)
    (folder / "report.json").write_text(json.dumps(as_json(measured, changes), indent=1) + "\n")
    return folder / "report.html", folder / "report.json"


def as_json(measured: Sequence[BundleQuality], changes: Sequence[Interval]) -> list[dict[str, Any]]:
    """What the page says, without pictures, one entry a bundle."""
    return [
        {
            "name": one.name,
            "digest": one.digest,
            "figures": one.figures,
            "recall_at_1_change": change and asdict(change),
            "slices": one.slices,
            "curves": one.curves,
            "reliability": [asdict(entry) for entry in one.reliability],
            "failures": [failure_entry(asked, one.shelf) for asked in worst(one.asked, len(one.asked)) if asked.rank],
        }
        for one, change in zip(measured, [None, *changes], strict=True)
    ]


def failure_entry(asked: Asked, shelf: Shelf) -> dict[str, Any]:
    """A miss in words."""
    return {
        "photo": str(asked.query.path),
        "product_id": asked.query.product_ids[asked.number],
        "rank": asked.rank + 1,
        "margin": round(asked.margin, 4),
        "found": shelf.products[asked.nearest[0][0]].product_id,
    }


def worst(asked: Sequence[Asked], num: int) -> list[Asked]:
    """Misses, the surest first: where another product is nearer by most."""
    return sorted((one for one in asked if one.rank), key=lambda one: one.margin)[:num]


def failure_row(asked: Asked, shelf: Shelf) -> dict[str, Any]:
    """One failure for the template: the photo, what was found, and what should have been."""
    truth = next(p for p in shelf.products if p.product_id == asked.query.product_ids[asked.number])
    places = [(shelf.products[row], f"{score:.3f}") for row, score in asked.nearest[:SHOWN]]
    return {
        "photo": query_picture(asked),
        "name": asked.query.path.name,
        "rank": asked.rank + 1,
        "truth": truth.product_id,
        "shown": [
            {"product_id": product.product_id, "note": note, "picture": picture_of(product.uris[0]), "true": product == truth}
            for product, note in [*places, (truth, "the one asked for")]
        ],
    }


def failure_sheet(failures: Sequence[Asked], shelf: Shelf, tile_px: int = 150) -> Image.Image:
    """A row a failure: the photo, the first SHOWN products, the product that was asked for; each with its caption."""
    tiles: list[tuple[Image.Image, str]] = []
    for asked in failures:
        truth = asked.query.product_ids[asked.number]
        photo = framed_photo(asked.query, asked.number)
        photo.thumbnail((tile_px, tile_px))
        found = [(shelf.products[row], f"{score:.3f}") for row, score in asked.nearest[:SHOWN]]
        wanted = next(product for product in shelf.products if product.product_id == truth)
        tiles.append((photo, f"rank {asked.rank + 1}"))
        tiles += [(shown_at(product.uris[0], tile_px), note) for product, note in [*found, (wanted, "asked for")]]
    return tile_sheet([picture for picture, _ in tiles], [caption for _, caption in tiles], SHOWN + 2, tile_px)


def query_picture(asked: Asked) -> str:
    """The framed photo as a data URI."""
    picture = framed_photo(asked.query, asked.number)
    picture.thumbnail((QUERY_PX, QUERY_PX))
    return data_uri(picture)


def picture_of(uri: str) -> str | None:
    """A thumbnail as data URI; none where the photo cannot be read."""
    thumbnail = read_thumbnail(uri, THUMBNAIL_PX)
    return None if thumbnail is None else data_uri(thumbnail)


def curve_pictures(measured: Sequence[BundleQuality]) -> dict[str, str]:
    """Kind of distortion -> picture of all bundles' curves."""
    pictures = {}
    for kind in measured[0].curves:
        figure = Figure(figsize=(5, 3.2), layout="tight")
        draw_curves(figure.subplots(), kind, {one.name: one.curves[kind] for one in measured})
        pictures[kind] = figure_uri(figure)
    return pictures


def reliability_picture(bins: Sequence[ReliabilityBin]) -> str:
    """Accuracy over confidence as a picture."""
    figure = Figure(figsize=(3.6, 3.2), layout="tight")
    draw_reliability(figure.subplots(), bins)
    return figure_uri(figure)


def draw_reliability(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    """Accuracy over confidence; on the diagonal a probability means what it says. Large dots hold many predictions."""
    total = sum(one.num for one in bins)
    axes.plot([0, 1], [0, 1], color="#9ca3af", linestyle=":")
    axes.scatter([one.confidence for one in bins], [one.accuracy for one in bins], s=[20 + 400 * one.num / total for one in bins])
    axes.set(xlabel="predicted probability", ylabel="share that was right", xlim=(0, 1.02), ylim=(0, 1.02))
