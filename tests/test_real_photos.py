"""Real photos, the public MobileNetV2 untrained, over HTTP: the floors that no change may fall below.

The photos and weights lie beside the project and are never part of it; without them these tests skip.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from jobs import nightly
from jobs.config import Config
from tests.parts import endpoint, run_module, write_conf

pytestmark = pytest.mark.shared_data


def mobilenet(weights: Path) -> dict[str, Any]:
    """The bundle section: the whole photo, through ImageNet's MobileNetV2 as it was published."""
    return {
        "name": "mobilenet-v2-imagenet",
        "encoder": {
            "kind": "torchvision",
            "arch": "mobilenet_v2",
            "weights": str(weights / "mobilenet_v2_imagenet_fp16.safetensors"),
            "tf_same_padding": True,
            "preprocess": {"size_px": 224, "resize_px": 256, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        },
    }


@pytest.fixture(scope="module")
def grocery(
    tmp_path_factory: pytest.TempPathFactory, spark: object, ray_local: None, shared_data: Path, shared_weights: Path
) -> Path:
    """Settings of a store that holds the 81 catalog photos of grocery-store."""
    manifest = shared_data / "grocery-store" / "manifest.jsonl"
    sections = {
        "bundle": mobilenet(shared_weights),
        "feed": {
            "uri": str(manifest),
            "columns": {"image_uri": "path", "category": "category_path"},
            "where": {"domain": "catalog"},
        },
        "evaluate": {"queries": str(manifest), "queries_where": {"split": "val"}, "num_queries": 81},
    }
    conf = write_conf(tmp_path_factory.mktemp("grocery"), sections)
    nightly.run(Config.load(conf))
    return conf


@pytest.fixture(scope="module")
def luma(
    tmp_path_factory: pytest.TempPathFactory, spark: object, ray_local: None, shared_data: Path, shared_weights: Path
) -> Iterator[str]:
    """The URL of an endpoint on the 547 photos of luma-catalog."""
    sections = {
        "bundle": mobilenet(shared_weights),
        "feed": {
            "uri": str(shared_data / "luma-catalog" / "manifest.jsonl"),
            "columns": {"image_uri": "path", "category": "category_path"},
            "defaults": {"currency": "USD"},
        },
    }
    conf = write_conf(tmp_path_factory.mktemp("luma"), sections)
    nightly.run(Config.load(conf))
    with endpoint(conf) as url:
        yield url


def test_grocery_recall_over_http(grocery: Path) -> None:
    """Whole-photo features give 0.335 / 0.672 / 0.777 with no training at all."""
    with endpoint(grocery) as url:
        done = run_module("jobs.evaluate_search", grocery, f"evaluate.url={url}", f"evaluate.report={grocery.parent}/report")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["pairs"] == 296
    assert figures["recall_at_1"] >= 0.33 and figures["recall_at_5"] >= 0.67 and figures["recall_at_10"] >= 0.78


def changed(photo: Path) -> dict[str, bytes]:
    """The photo as it comes back to a shop: compressed again, smaller, mirrored, turned."""
    picture = Image.open(photo).convert("RGB")
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    turns = {"90": Image.Transpose.ROTATE_90, "180": Image.Transpose.ROTATE_180, "270": Image.Transpose.ROTATE_270}
    versions = {"jpeg60": picture, "half": half, "mirror": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    versions |= {f"turn{name}": picture.transpose(turn) for name, turn in turns.items()}
    encoded = {}
    for name, version in versions.items():
        buffer = io.BytesIO()
        version.save(buffer, "JPEG", quality=60 if name == "jpeg60" else 90)
        encoded[name] = buffer.getvalue()
    return encoded


def test_luma_photos_come_back_exact(luma: str, shared_data: Path) -> None:
    """Every fifth photo in six versions (all of them: `make bench`): its own product first, by the hash stage, in 97 %."""
    folder = shared_data / "luma-catalog"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()][::5]
    wrong = []
    with requests.Session() as session:
        for row in rows:
            for name, photo in changed(folder / row["path"]).items():
                answer = session.post(f"{luma}/v1/search", files={"image": photo}, data={"k": 3}, timeout=30).json()
                if answer["stage"] != "hash" or answer["results"][0]["product_id"] != row["product_id"]:
                    wrong.append((row["path"], name, answer["stage"], answer["results"][0]["product_id"]))
    assert len(wrong) <= 0.03 * 6 * len(rows), wrong


def test_foreign_photos_are_not_exact(luma: str, shared_data: Path) -> None:
    """Every 20th photo of clothing-small, none of which is in the catalog."""
    folder = shared_data / "clothing-small"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()][::20]
    with requests.Session() as session:
        for row in rows:
            photo = (folder / row["path"]).read_bytes()
            answer = session.post(f"{luma}/v1/search", files={"image": photo}, data={"k": 1}, timeout=30).json()
            assert answer["stage"] == "vector", row["path"]
