"""Another bundle takes over without downtime: embedded beside the old one over nights, the popular first."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import requests

from jobs import nightly, render_catalog
from jobs.config import Config
from jobs.failpoint import EXIT_CODE
from jobs.run_records import PUBLISHED, UNCHANGED, read_rows
from jobs.tables import Tables, read_table
from serve.index.manifest import read_manifest
from serve.registry import champion
from serve.vision.bundle import bundle_digest
from tests.parts import ROOT, endpoint, run_module, write_conf

SHARE = 40  # photos a night


def another_bundle(folder: Path) -> Path:
    """The shipped bundle with another threshold: other crops, another digest."""
    shutil.copytree(ROOT / "serve" / "bundles" / "generated-v1", folder)
    config = json.loads((folder / "bundle.json").read_text())
    config["detector"]["min_score"] = 0.55
    (folder / "bundle.json").write_text(json.dumps(config))
    return folder


def served_digest(config: Config) -> str:
    return read_manifest(champion(config.registry, config.store)).bundle.digest


def embedded(config: Config, digest: str) -> set[str]:
    """URIs that were looked at with a bundle."""
    fetches = read_table(Tables(config.store.tables), "fetches", ["image_uri", "bundle_digest"])
    uris: list[str] = fetches.filter(pc.equal(fetches["bundle_digest"], digest))["image_uri"].to_pylist()
    assert len(uris) == len(set(uris))
    return set(uris)


def by_popularity(config: Config) -> list[str]:
    """URIs of the catalog's photos, those of the most popular products first."""
    tables = Tables(config.store.tables)
    popular = {row["product_id"]: row["popularity"] or 0.0 for row in read_table(tables, "products").to_pylist()}
    rows = read_table(tables, "images").to_pylist()
    return [r["image_uri"] for r in sorted(rows, key=lambda r: (-popular[r["product_id"]], r["position"], r["image_uri"]))]


class Asker(threading.Thread):
    """Asks for the like of one product until it is stopped."""

    def __init__(self, url: str, product_id: str) -> None:
        super().__init__(daemon=True)
        self.url, self.product_id, self.stopped = url, product_id, threading.Event()
        self.bundles: list[str] = []
        self.faults: list[str] = []

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            answer = requests.post(f"{self.url}/v1/search", json={"product_id": self.product_id, "k": 3}, timeout=30)
            if answer.status_code == 200:
                self.bundles.append(answer.json()["release"]["bundle_digest"])
            else:
                self.faults.append(answer.text)


@pytest.mark.drill
def test_another_bundle_takes_over_while_serving(spark: object, ray_local: None, tmp_path: Path) -> None:
    rendered, new = tmp_path / "rendered", another_bundle(tmp_path / "new")
    sections: dict[str, Any] = {
        "render": {"folder": str(rendered), "num_products": 24, "num_scenes": 4, "with_bad_rows": False},
        "feed": {"uri": str(rendered / "feed.jsonl")},
        "evaluate": {"queries": str(rendered / "queries.jsonl"), "num_queries": 24},
        "serve": {"watch_s": 1.0},
    }
    config = Config.load(write_conf(tmp_path, sections))
    render_catalog.run(config)
    nightly.run(config)
    old_digest, new_digest = served_digest(config), bundle_digest(new)
    assert old_digest != new_digest
    popular = by_popularity(config)
    assert SHARE < len(popular) <= 2 * SHARE

    changing = {"nightly": {"next_bundle": {"path": str(new)}, "next_images": SHARE}, "embed": {"block_rows": 4}}
    conf = write_conf(tmp_path, sections | changing)
    config = Config.load(conf)
    with endpoint(conf) as url:
        asker = Asker(url, read_table(Tables(config.store.tables), "products")["product_id"][0].as_py())
        asker.start()
        killed = run_module("jobs.nightly", conf, VS_FAILPOINT="embed:after_success")
        assert killed.returncode == EXIT_CODE, killed.stderr
        assert embedded(config, new_digest) == set(), "killed before its commit"
        nightly.run(config)
        assert embedded(config, new_digest) == set(popular[:SHARE]), "the share of the killed night, carried through"
        assert served_digest(config) == old_digest and embedded(config, old_digest) == set(popular)
        nights = 0
        while served_digest(config) == old_digest:
            nights += 1
            assert nights <= 3
            nightly.run(config)
        assert embedded(config, new_digest) == set(popular)
        wait_for(asker, new_digest)
        asker.stopped.set()
        asker.join()
    assert not asker.faults and set(asker.bundles) == {old_digest, new_digest}
    nightly.run(config)
    outcomes = [row["outcome"] for row in read_rows(Tables(config.store.tables))]
    assert outcomes[-2:] == [PUBLISHED, UNCHANGED], "the bundle that took over is tonight's"
    assert served_digest(config) == new_digest


def wait_for(asker: Asker, digest: str) -> None:
    """Until the answers come from a release of that bundle."""
    for _ in range(300):
        if asker.bundles and asker.bundles[-1] == digest:
            return
        asker.stopped.wait(0.1)
    raise AssertionError(f"still answered by {asker.bundles[-1:]}; {asker.faults[:1]}")
