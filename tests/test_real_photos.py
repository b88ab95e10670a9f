"""Real photos, the public MobileNetV2 untrained, over HTTP: the floors that no change may fall below.

The photos and weights lie beside the project and are never part of it; without them these tests skip.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from jobs import nightly
from jobs.config import Config
from tests.parts import endpoint, run_module, write_conf
from tests.photos import grocery_sections, luma_sections, manifest_rows, re_uploads

pytestmark = [pytest.mark.slow, pytest.mark.shared_data, pytest.mark.usefixtures("spark", "ray_local")]


@pytest.fixture(scope="module")
def luma(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, shared_weights: Path) -> Iterator[str]:
    """The URL of an endpoint on luma-catalog."""
    conf = write_conf(tmp_path_factory.mktemp("luma"), luma_sections(shared_data, shared_weights))
    nightly.run(Config.load(conf))
    with endpoint(conf) as url:
        yield url


def test_grocery_recall_over_http(tmp_path: Path, shared_data: Path, shared_weights: Path) -> None:
    """Whole-photo features give 0.335 / 0.672 / 0.777 with no training at all."""
    conf = write_conf(tmp_path, grocery_sections(shared_data, shared_weights))
    nightly.run(Config.load(conf))
    with endpoint(conf) as url:
        done = run_module("jobs.evaluate_search", conf, f"evaluate.url={url}", f"evaluate.report={tmp_path}/report")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["pairs"] == 296
    assert figures["recall_at_1"] >= 0.33 and figures["recall_at_5"] >= 0.67 and figures["recall_at_10"] >= 0.78


def test_luma_photos_come_back_exact(luma: str, shared_data: Path) -> None:
    """Every tenth photo in six versions (all of them: bench_exact): its own product first, by the hash stage, in 97 %."""
    folder = shared_data / "luma-catalog"
    rows = manifest_rows(folder, step=10)
    wrong = []
    with requests.Session() as session:
        for row in rows:
            for name, photo in re_uploads(folder / row["path"]).items():
                answer = session.post(f"{luma}/v1/search", files={"image": photo}, data={"k": 3}, timeout=30).json()
                if answer["stage"] != "hash" or answer["results"][0]["product_id"] != row["product_id"]:
                    wrong.append((row["path"], name, answer["stage"], answer["results"][0]["product_id"]))
    assert len(wrong) <= 0.03 * 6 * len(rows), wrong


def test_foreign_photos_are_not_exact(luma: str, shared_data: Path) -> None:
    """Every 30th photo of clothing-small, none of which is in the catalog."""
    folder = shared_data / "clothing-small"
    with requests.Session() as session:
        for row in manifest_rows(folder, step=30):
            photo = (folder / row["path"]).read_bytes()
            answer = session.post(f"{luma}/v1/search", files={"image": photo}, data={"k": 1}, timeout=30).json()
            assert answer["stage"] == "vector", row["path"]
