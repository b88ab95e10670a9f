"""Both networks learn a tiny set in a few steps, and what they leave behind opens as a bundle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.config import TrainDetectorConfig, TrainEncoderConfig
from jobs.render.catalog import CATEGORIES
from jobs.training.detector_task import DetectorTask
from jobs.training.encoder_task import EncoderTask
from jobs.training.fragment import log_curve, write_fragment
from jobs.training.loop import Task
from jobs.training.photos import Split
from serve.settings import RegistryConfig
from serve.vision.bundle import Bundle
from serve.vision.spec import RuntimeConfig

CPU = torch.device("cpu")
LABELS = tuple(spec.path for spec in CATEGORIES)


def encoder_task(split: Split, photos: Path, **settings: object) -> EncoderTask:
    config = TrainEncoderConfig.model_validate(
        {"input_px": [48], "embedding_dim": 32, "batch_products": 4, "batch_images": 4, **settings}
    )
    return EncoderTask(config, split, split, photos, LABELS)


def detector_task(split: Split, photos: Path) -> DetectorTask:
    return DetectorTask(TrainDetectorConfig(input_px=(96,), batch_size=4, plain_frac=1.0), split, split, photos)


def values_of_steps(task: Task, num: int, learning_rate: float) -> list[float]:
    """Losses of `num` Adam steps."""
    optimizer = torch.optim.Adam(task.groups(learning_rate))
    values: list[float] = []
    epoch = 0
    while len(values) < num:
        for loss in task.losses(epoch, CPU):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            values.append(float(loss.detach()))
        epoch += 1
    return values


@pytest.mark.parametrize("loss", ["supervised_contrastive", "arcface"])
def test_encoder_loss_falls(tiny_split: Split, tiny_photos: Path, loss: str) -> None:
    values = values_of_steps(encoder_task(tiny_split, tiny_photos, loss=loss), 16, 3e-3)
    assert np.mean(values[-4:]) < 0.9 * np.mean(values[:4])


def test_detector_loss_falls(tiny_split: Split, tiny_photos: Path) -> None:
    values = values_of_steps(detector_task(tiny_split, tiny_photos), 12, 2e-3)
    assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3])


def test_an_epoch_is_the_same_whenever_it_is_run(tiny_split: Split, tiny_photos: Path) -> None:
    tasks = [encoder_task(tiny_split, tiny_photos) for _ in range(2)]
    first, second = ([float(loss.detach()) for loss in task.losses(3, CPU)] for task in tasks)
    assert first == second


def test_figures_are_shares(tiny_split: Split, tiny_photos: Path) -> None:
    for task in (encoder_task(tiny_split, tiny_photos), detector_task(tiny_split, tiny_photos)):
        task.network.eval()
        figures = task.figures(CPU)
        assert all(0 <= value <= 1 for name, value in figures.items() if not name.startswith("num_"))
        assert any(value >= tiny_split.num_scenes for name, value in figures.items() if name.startswith("num_"))


def test_fragments_open_as_a_bundle(tiny_split: Split, tiny_photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    detector, encoder = detector_task(tiny_split, tiny_photos), encoder_task(tiny_split, tiny_photos)
    preprocess = {"size_px": 96, "resize": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    found = {"kind": "torchvision", "arch": "ssdlite320_mobilenet_v3_large", "labels": ("item",), "preprocess": preprocess}
    write_fragment(folder, "tiny", "detector", found, detector.shipped().state_dict())
    seen = {"kind": "torchvision", "arch": "mobilenet_v3_small", "embedding_dim": 32, "labels": LABELS,
            "preprocess": {"size_px": 48, "resize": "pad"}}  # fmt: skip
    write_fragment(folder, "tiny", "encoder", seen, encoder.shipped().state_dict())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15_000_000
    assert set(json.loads((folder / "bundle.json").read_text())) == {"name", "detector", "encoder"}
    assert (folder / "encoder.safetensors").stat().st_mode & 0o044, "others may read it"

    bundle = Bundle.load(folder, RuntimeConfig())
    assert (bundle.name, bundle.dim, tuple(bundle.labels)) == ("tiny", 32, LABELS)
    (features,) = bundle.analyse([np.full((120, 90, 3), 128, np.uint8)])
    assert features[0].category in LABELS
    np.testing.assert_allclose(np.linalg.norm(features[0].embedding), 1, atol=1e-3)


def test_curve_is_logged(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    registry = RegistryConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "artifacts"))
    history = [{"epoch": 1.0, "loss": 3.0}, {"epoch": 2.0, "loss": 2.0}]
    run_id = log_curve(registry, "train_encoder", {"epochs": 2}, history)
    client = MlflowClient(registry.uri)
    assert [metric.value for metric in client.get_metric_history(run_id, "loss")] == [3.0, 2.0]
    assert client.get_run(run_id).data.params["epochs"] == "2"
