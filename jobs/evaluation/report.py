"""Report pages: one self-contained HTML file with pictures, for people; the same figures as JSON beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image, ImageDraw

from jobs.evaluation.pictures import data_uri, read_thumbnail
from jobs.evaluation.queries import Query
from serve.vision.image import decode_image
from serve.vision.spec import DecodeLimits

THUMBNAIL_PX = 150
QUERY_PX = 300


@dataclass(frozen=True)
class Outcome:
    """What became of product `number` of one query: its rank among `results` (0 = first), none = not found."""

    query: Query
    number: int
    rank: int | None
    crop_box: list[float] | None
    results: list[dict[str, Any]]
    answer: dict[str, Any]
    milliseconds: float

    @property
    def truth(self) -> str:
        """The product that was to be found."""
        return self.query.product_ids[self.number]


def write_search_report(folder: Path, figures: dict[str, Any], outcomes: list[Outcome], num_shown: int) -> None:
    """`report.html` and `report.json` in `folder`: the figures, then `num_shown` outcomes, half of them misses."""
    folder.mkdir(parents=True, exist_ok=True)
    misses = [o for o in outcomes if o.rank != 0]
    hits = [o for o in outcomes if o.rank == 0]
    num_misses = min(len(misses), max(num_shown // 2, num_shown - len(hits)))
    shown = misses[:num_misses] + hits[: num_shown - num_misses]
    page = environment().get_template("search_report.html").render(figures=figures, rows=[row_of(o) for o in shown])
    (folder / "report.html").write_text(page)
    (folder / "report.json").write_text(json.dumps(figures, indent=2) + "\n")


def environment() -> Environment:
    """Jinja with the templates beside this file, everything escaped."""
    return Environment(
        loader=PackageLoader("jobs.evaluation"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )


def row_of(outcome: Outcome) -> dict[str, Any]:
    """One outcome for the template, pictures as data URIs."""
    thumbnails = [read_thumbnail(result.get("image_uri") or "", THUMBNAIL_PX) for result in outcome.results[:6]]
    return {
        "outcome": outcome,
        "query": query_picture(outcome),
        "results": [
            result | {"picture": thumbnail and data_uri(thumbnail), "true": result["product_id"] == outcome.truth}
            for result, thumbnail in zip(outcome.results[:6], thumbnails, strict=True)
        ],
    }


def query_picture(outcome: Outcome) -> str:
    """The photo with what was found (blue), the crop that is shown (thick) and where the product is (green)."""
    picture = Image.fromarray(decode_image(outcome.query.path.read_bytes(), DecodeLimits()))
    pen = ImageDraw.Draw(picture)
    width = max(2, picture.width // 150)
    for crop in outcome.answer["crops"]:
        pen.rectangle(tuple(crop["box"]), outline="#3b82f6", width=width * (2 if crop["box"] == outcome.crop_box else 1))
    if outcome.query.boxes_N4:
        pen.rectangle(outcome.query.boxes_N4[outcome.number], outline="#22c55e", width=width)
    picture.thumbnail((QUERY_PX, QUERY_PX))
    return data_uri(picture)
