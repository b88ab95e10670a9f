"""Both trainings as their commands run them: photos, Ray Train, bundle and MLflow, below the folder they were started in."""

from pathlib import Path
from typing import Any

import mlflow
import pytest

from jobs import train_detector, train_encoder
from jobs.config import Config
from serve.vision.bundle import Bundle
from serve.vision.spec import RuntimeConfig
from tests.parts import write_conf

FEW = {"num_products": 24, "num_scenes": 16, "heldout_products": 12, "heldout_scenes": 8, "scene_px": 160, "tile_px": 64}
SHORT = {"epochs": 1, "threads": 1, "average": 0.0}


def test_a_detector_and_an_encoder_become_one_bundle(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folders are the relative ones of the settings: workers of Ray Train run somewhere else."""
    monkeypatch.chdir(tmp_path)
    sections: dict[str, Any] = {
        "training": FEW | {"part_products": 12},
        "train_detector": SHORT | {"input_px": [64], "batch_size": 8},
        "train_encoder": SHORT | {"input_px": [32], "preprocess": {"size_px": 32, "resize": "pad"}, "batch_products": 4},
    }
    config = Config.load(write_conf(tmp_path, sections))
    assert not config.train_detector.folder.is_absolute() and not config.train_encoder.folder.is_absolute()
    found, learned = train_detector.run(config), train_encoder.run(config)
    assert found.epochs == learned.epochs == 1 and 0 <= learned.figures["recall_at_1"] <= 1
    bundle = Bundle.load(tmp_path / "store" / "training" / "bundle", RuntimeConfig())
    assert bundle.detector.labels == ("item",) and bundle.dim == config.train_encoder.embedding_dim
    mlflow.set_tracking_uri(config.registry.uri)
    assert len(mlflow.search_runs(search_all_experiments=True)) == 2
