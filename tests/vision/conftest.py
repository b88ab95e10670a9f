"""A small bundle with random weights, once a session, and the development photos."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from serve.vision.backbones import EmbeddingNet
from serve.vision.preprocess import network_input
from serve.vision.spec import BundleConfig, EncoderConfig, Preprocess

ENCODER = EncoderConfig(
    kind="torchvision",
    arch="mobilenet_v3_small",
    embedding_dim=16,
    labels=("bags/totes", "shoes/boots", "shoes/sandals"),
    preprocess=Preprocess(size_px=64),
)


@pytest.fixture(scope="session")
def encoder_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of ENCODER under EmbeddingNet's keys; norms as after training, so that vectors differ between photos."""
    torch.manual_seed(3)
    net = EmbeddingNet("mobilenet_v3_small", 16, 3)
    settle_norms(net, lambda: net(torch.from_numpy(network_input(photos(32), ENCODER.preprocess))))
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def small_config(encoder_weights: Path) -> BundleConfig:
    """A bundle of parts: no detector, ENCODER."""
    return BundleConfig(name="small", encoder=ENCODER.model_copy(update={"weights": str(encoder_weights)}))


@pytest.fixture(scope="session")
def photos_folder() -> Path:
    """The development photos; the folder `weights` lies beside it."""
    folder = Path(os.environ.get("VS_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the development photos are not at {folder}; set VS_SHARED_DATA")
    return folder


def photos(count: int) -> list[np.ndarray]:
    """Smooth pictures of different sizes, the same every time."""
    random = np.random.default_rng(5)
    return [np.kron(random.integers(0, 255, (6, 7 + i, 3)), np.ones((12, 12, 1))).astype(np.uint8) for i in range(count)]


def settle_norms(net: torch.nn.Module, run: Callable[[], object]) -> None:
    """Takes the batch norms' statistics from one training-mode pass, as training leaves them, and ends in evaluation mode."""
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        net.train()
        run()
    net.eval()
