"""A second night with new prices, withdrawn, new and re-photographed products does what changed, and equals a fresh build."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import nightly, render_catalog
from jobs.config import Config
from jobs.run_records import read_rows
from jobs.tables import Tables
from tests.nights import Change, Row, another_night, held, read_feed, write_feed
from tests.parts import write_conf
from tests.photos import luma_products, luma_sections

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("spark", "ray_local")]


def generated(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows of a generated catalog, and settings for it."""
    rendered = folder / "rendered"
    render = {"folder": str(rendered), "num_products": 80, "num_scenes": 6, "with_bad_rows": False}
    folder.mkdir()
    render_catalog.run(Config.load(write_conf(folder, {"render": render})))
    return read_feed(rendered / "feed.jsonl"), {"evaluate": {"queries": str(rendered / "queries.jsonl")}}


@pytest.mark.parametrize("catalog", ["generated", "luma"])
def test_second_night_equals_a_fresh_build(catalog: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    feed, change = tmp_path / "feed.jsonl", Change()
    if catalog == "generated":
        rows, sections = generated(tmp_path / "catalog")
    else:
        data, weights = (request.getfixturevalue(name) for name in ("shared_data", "shared_weights"))
        rows, sections = luma_products(data), {"bundle": luma_sections(data, weights)["bundle"]}
    sections["feed"] = {"uri": str(feed)}
    for name in ("nights", "fresh"):
        (tmp_path / name).mkdir()
    config = Config.load(write_conf(tmp_path / "nights", sections))
    write_feed(feed, rows)
    nightly.run(config)
    second = another_night(rows, tmp_path / "photos", change, seed=1)
    write_feed(feed, second)
    nightly.run(config)
    stages = {stage["name"]: json.loads(stage["counts"]) for stage in read_rows(Tables(config.store.tables))[-1]["stages"]}
    known = {uri for row in rows for uri in row["image_uris"]}
    new = {uri for row in second for uri in row["image_uris"]} - known
    assert stages["embed_images"]["images_in"] == len(new) >= change.new + change.repictured, "only photos that were never seen"
    fresh = Config.load(write_conf(tmp_path / "fresh", sections))
    nightly.run(fresh)
    assert held(config) == held(fresh)
    before = held(config)
    nightly.run(config, full=True)
    assert held(config) == before
    last = read_rows(Tables(config.store.tables))[-1]
    assert last["outcome"] == "published" and json.loads(last["stages"][5]["counts"])["reused"] == 0
    nightly.run(config)
    assert read_rows(Tables(config.store.tables))[-1]["outcome"] == "unchanged"
