"""The gate's page: every figure with its bounds and the champion's, and the photos whose answer got worse, with pictures."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.evaluation.beside_champion import K, KnownAnswer
from jobs.evaluation.pictures import data_uri, framed_photo, read_thumbnail
from jobs.evaluation.report import QUERY_PX, THUMBNAIL_PX, environment
from jobs.gate import Check
from serve.index.release import Release

SHOWN = 5  # products of an answer


def write_gate_report(
    folder: Path,
    release: Release,
    champion: Release | None,
    checks: Sequence[Check],
    faults: Sequence[str],
    worse: list[KnownAnswer],
) -> Path:
    """`report.html` and `report.json` in `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"release": release.manifest.release_id, "champion": champion and champion.manifest.release_id}
    page = environment().get_template("gate_report.html").render(
        names=names, checks=checks, faults=faults, rows=[row_of(answer, release, champion) for answer in worse]
    )  # fmt: skip
    (folder / "report.html").write_text(page)
    figures = {check.name: asdict(check.figure) | {"faults": check.faults} for check in checks}
    told = names | {"faults": list(faults), "figures": figures, "worse": [entry_of(answer) for answer in worse]}
    (folder / "report.json").write_text(json.dumps(told, indent=1) + "\n")
    return folder / "report.html"


def entry_of(answer: KnownAnswer) -> dict[str, Any]:
    """A photo that got worse, in words."""
    ours, theirs = answer.ranks()
    return {"photo": str(answer.query.path), "product_id": answer.product_id, "rank": ours + 1, "champion_rank": theirs + 1}


def row_of(answer: KnownAnswer, release: Release, champion: Release | None) -> dict[str, Any]:
    """A photo that got worse for the template: what the champion answered, and what the release would."""
    photo = framed_photo(answer.query, answer.number)
    photo.thumbnail((QUERY_PX, QUERY_PX))
    lists = [("champion", champion, answer.champion or ()), ("this release", release, answer.ours)]
    ranks = dict(zip(("this release", "champion"), answer.ranks(), strict=True))
    return {
        "photo": data_uri(photo),
        "name": answer.query.path.name,
        "truth": answer.product_id,
        "answers": [
            {
                "of": name,
                "rank": "not found" if ranks[name] == K else f"rank {ranks[name] + 1}",
                "products": [shown(product_id, of, answer.product_id) for product_id in ids[:SHOWN]],
            }
            for name, of, ids in lists
            if of is not None
        ],
    }


def shown(product_id: str, release: Release, truth: str) -> dict[str, Any]:
    """A product of an answer with its picture."""
    product = release.product(product_id) or {}
    thumbnail = read_thumbnail(product.get("image_uri") or "", THUMBNAIL_PX)
    return {"product_id": product_id, "picture": thumbnail and data_uri(thumbnail), "true": product_id == truth}
