"""The catalog doctor's page: every fault with its count, what could not be judged and why, the worst examples with pictures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from jobs.config import Config
from jobs.evaluation.pictures import data_uri
from jobs.evaluation.report import THUMBNAIL_PX, environment
from jobs.evaluation.shelf import read_photos

# Each finding: its heading, and what to do about it.
FINDINGS = {
    "shared_picture": (
        "One picture under several products",
        "Strangers share a placeholder, or one of them has the wrong photo. Siblings of one group_id are variants that nobody "
        "photographed by themselves: a photo finds any of them.",
    ),
    "across_brands": (
        "Nearly one picture, several brands",
        "The same thing listed twice, a stock photo of the maker, or a copy.",
    ),
    "wrong_category": (
        "The photo shows another category",
        "The category of the feed is wrong, or the photo. A confident network errs, too: look first.",
    ),
    "colour_differs": (
        "The colour that is named is not in the photo",
        "The photo of another variant, or a wrong colour. White, grey, beige and metals are not judged.",
    ),
    "without_photo": (
        "Products without a photo that can be searched",
        "Photo search cannot find them.",
    ),
    "look_alikes": (
        "Siblings that photo search cannot tell apart",
        "Their photos differ, their embeddings hardly do: a photo of one finds the other as well. Pictures that show the "
        "difference help, or one product with variants.",
    ),
    "dead_links": (
        "Photos that did not come",
        "By host, bucket or folder. What failed or timed out is tried again every night.",
    ),
}


@dataclass(frozen=True)
class Product:
    """One of an example, and what is to be said of it."""

    product_id: str
    title: str | None
    image_uri: str | None
    says: str | None


@dataclass(frozen=True)
class Example:
    """One fault."""

    kind: str
    told: str
    products: tuple[Product, ...]


@dataclass(frozen=True)
class Finding:
    """One of FINDINGS: how many of each kind, the worst examples."""

    name: str
    kinds: dict[str, int]
    examples: list[Example]

    @property
    def count(self) -> int:
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Facts:
    """What there was to examine."""

    products: int
    photos: int
    branded: int  # products that name a brand
    coloured: int  # products with a colour in a column of its own
    grouped: int  # products with a group_id
    categorised: int
    known: int  # products in a category that the bundle knows
    labels: tuple[str, ...]  # categories of the bundle
    suspected: int  # products whose photos' signatures lack the colour that is named
    looked_at: int  # of these, those whose photos were read

    def notes(self) -> dict[str, str]:
        """What could not be judged, by finding."""
        notes = {}
        if not self.branded:
            notes["across_brands"] = "Not judged: no product names a brand."
        if not self.labels:
            notes["wrong_category"] = "Not judged: the bundle knows no categories (it has no head and no labelled vectors)."
        elif not self.known:
            some = ", ".join(self.labels[:3])
            notes["wrong_category"] = f"Not judged: the bundle knows {some} and others, none of them a category of this shop."
        elif self.known < self.categorised:
            notes["wrong_category"] = (
                f"Judged: {self.known} of {self.categorised} products; the bundle does not know the others' categories."
            )
        if self.suspected:
            notes["colour_differs"] = f"{self.suspected} suspected by their signature, the photos of {self.looked_at} looked at."
        if not self.grouped and not self.branded:
            notes["look_alikes"] = "Not judged: no product has a group_id or a brand that would tell its siblings."
        return notes


def write_doctor_report(config: Config, facts: Facts, findings: Sequence[Finding], versions: dict[str, int]) -> Path:
    """`report.html` and `report.json` in doctor.report; returns the page."""
    folder, notes = config.doctor.report, facts.notes()
    folder.mkdir(parents=True, exist_ok=True)
    embedded = [f for f in findings if f.name not in ("without_photo", "dead_links")]  # the others have no photo to show
    uris = {p.image_uri for f in embedded for e in f.examples for p in e.products if p.image_uri is not None}
    page = environment().get_template("doctor_report.html").render(
        facts=facts, findings=findings, texts=FINDINGS, notes=notes, pictures=read_thumbnails(config, sorted(uris))
    )  # fmt: skip
    told = {
        "facts": asdict(facts) | {"labels": list(facts.labels)},
        "versions": versions,
        "findings": {f.name: {"count": f.count, "note": notes.get(f.name), **asdict(f)} for f in findings},
    }
    (folder / "report.json").write_text(json.dumps(told, indent=1) + "\n")
    (folder / "report.html").write_text(page)
    return folder / "report.html"


def read_thumbnails(config: Config, uris: Sequence[str]) -> dict[str, str]:
    """Data URIs of the photos that can still be read."""
    pictures = {}
    for rows, _, pixels in read_photos(config, list(enumerate(uris))):
        for row, photo in zip(rows, pixels, strict=True):
            thumbnail = Image.fromarray(photo)
            thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            pictures[uris[row]] = data_uri(thumbnail)
    return pictures
