"""A second night with new prices, withdrawn, new and re-photographed products does what changed, and equals a fresh build."""

import json
from pathlib import Path

import pytest

from jobs import nightly, render_catalog
from jobs.config import Config
from jobs.run_records import read_rows
from jobs.tables import Tables
from tests.nights import Change, another_night, held, read_feed, write_feed
from tests.parts import write_conf

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("spark", "ray_local")]


def test_second_night_equals_a_fresh_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rendered, feed, change = tmp_path / "rendered", tmp_path / "feed.jsonl", Change()
    render = {"folder": str(rendered), "num_products": 80, "num_scenes": 6, "with_bad_rows": False}
    sections = {"render": render, "feed": {"uri": str(feed)}, "evaluate": {"queries": str(rendered / "queries.jsonl")}}
    for name in ("nights", "fresh"):
        (tmp_path / name).mkdir()
    config = Config.load(write_conf(tmp_path / "nights", sections))
    render_catalog.run(config)
    rows = read_feed(rendered / "feed.jsonl")
    write_feed(feed, rows)
    nightly.run(config)
    write_feed(feed, another_night(rows, tmp_path / "photos", change, seed=1))
    nightly.run(config)
    stages = {stage["name"]: json.loads(stage["counts"]) for stage in read_rows(Tables(config.store.tables))[-1]["stages"]}
    views = len(rows[0]["image_uris"])
    assert stages["embed_images"]["images_in"] == change.new * views + change.repictured, "only photos that were never seen"
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
