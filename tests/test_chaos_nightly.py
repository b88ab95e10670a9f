"""The nightly run killed everywhere, and by chance: what comes out equals a run that nobody disturbed. `make chaos-nightly`."""

import random
import subprocess
import time
from pathlib import Path

import pytest

from jobs import nightly
from jobs.config import Config
from jobs.failpoint import EXIT_CODE
from jobs.release_registry import Registry
from jobs.run_records import read_rows
from jobs.tables import Tables
from tests.nights import (
    LONGEST_S,
    Change,
    another_night,
    conf_of,
    finish_night,
    held,
    read_feed,
    render_few,
    start_night,
    sweep,
    write_feed,
)

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("spark", "ray_local")]

POINTS = (  # in the order of the path: before, in and after what every stage writes
    *("curate_catalog:before", "curate:after_listings", "curate:after_images", "curate_catalog:after"),
    *("embed_images:before", "embed:after_success", "embed:after_features", "embed:after_fetches", "embed_images:after"),
    *("group_duplicates:before", "group:after_write", "group_duplicates:after"),
    *("catalog_doctor:before", "catalog_doctor:after"),
    *("train_looks:before", "train_looks:after"),
    *("train_index:before", "train:after_staging", "train:after_templates", "train_index:after"),
    *("build_shards:before", "build:after_shard", "build_shards:after"),
    *("evaluate_index:before", "evaluate:after_write", "evaluate_index:after"),
    *("publish_release:before", "publish:after_manifest", "publish:after_rename", "publish:after_register"),
    *("publish:after_champion", "publish_release:after"),
)
NUM_KILLS = 20
NIGHT = Change(priced=4, withdrawn=3, new=3, repictured=2)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feed of a generated catalog."""
    return render_few(tmp_path_factory.mktemp("rendered"))


def test_killed_at_every_point(rendered: Path, tmp_path: Path) -> None:
    """One store, killed at one point after the other: each run goes on where the one before was killed."""
    conf = conf_of(tmp_path / "killed", rendered)
    for point in POINTS:
        process = start_night(conf, VS_FAILPOINT=point)
        _, errors = process.communicate(timeout=LONGEST_S)
        sweep(process)
        assert process.returncode == EXIT_CODE, f"{point}: {errors[-3000:]}"
    finish_night(conf)
    config = Config.load(conf)
    undisturbed = Config.load(conf_of(tmp_path / "undisturbed", rendered))
    nightly.run(undisturbed)
    assert held(config) == held(undisturbed)
    outcomes = [row["outcome"] for row in read_rows(Tables(config.store.tables))]
    assert outcomes.count("killed") == len(POINTS) and outcomes[-1] == "unchanged"
    assert len(Registry(config).client.search_model_versions(f"name = '{config.registry.model}'")) == 1


def test_killed_at_random(rendered: Path, tmp_path: Path) -> None:
    """kill -9 of the whole process group after a time drawn by lot; a night that ends is followed by another feed."""
    draw = random.Random(6)
    rows = read_feed(rendered)
    feed = write_feed(tmp_path / "feed.jsonl", rows)
    conf, night, kills, longest = conf_of(tmp_path / "killed", feed), 0, 0, 60.0
    while kills < NUM_KILLS:
        process, began = start_night(conf), time.monotonic()
        try:
            _, errors = process.communicate(timeout=draw.uniform(0.05, 1.0) * longest)
            assert process.returncode == 0, errors[-3000:]
            longest = time.monotonic() - began
            night += 1
            rows = another_night(rows, tmp_path / "photos", NIGHT, seed=night)
            write_feed(feed, rows)
        except subprocess.TimeoutExpired:
            kills += 1
        sweep(process)
        process.communicate()
    finish_night(conf)
    undisturbed = Config.load(conf_of(tmp_path / "undisturbed", feed))
    nightly.run(undisturbed)
    assert held(Config.load(conf)) == held(undisturbed)
