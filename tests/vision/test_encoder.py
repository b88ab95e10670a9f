"""Encoders: by name, the same vector in every batch and as torch gives it, and clear errors for weights that do not fit."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from serve.vision import runtime
from serve.vision.backbones import CLASSIFIERS, EmbeddingNet, SamePadConv2d, pyramid
from serve.vision.encoder import build_encoder, build_module, open_clip_model
from serve.vision.preprocess import boxes_in_image, network_input
from serve.vision.runtime import DeviceError
from serve.vision.spec import BundleError, EncoderConfig, Preprocess, RuntimeConfig
from tests.vision.conftest import ENCODER, photos, settle_norms

CPU = RuntimeConfig()


def named(weights: Path) -> EncoderConfig:
    return ENCODER.model_copy(update={"weights": weights.name})


def test_vectors_equal_torch_and_do_not_depend_on_the_batch(
    encoder_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = named(encoder_weights), encoder_weights.parent
    with caplog.at_level(logging.INFO):
        encoder = build_encoder(config, folder, CPU, tmp_path)
    assert "converted network=" in caplog.text
    crops = photos(19)
    vectors, probabilities = encoder.encode(crops)
    assert vectors.shape == (19, 16) and vectors.dtype == np.float32 and encoder.dim == 16
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (
        probabilities is not None and probabilities.shape == (19, 3) and probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    )

    with torch.inference_mode():
        expected = build_module(config, folder).eval()(torch.from_numpy(network_input(crops, config.preprocess)))
    assert np.abs(vectors - expected[0].numpy()).max() < 1e-5
    assert np.abs(probabilities - expected[1].numpy()).max() < 1e-5
    assert np.std(vectors, axis=0).max() > 0.01  # the photos are told apart

    alone = np.concatenate([encoder.encode([crop])[0] for crop in crops])
    assert np.abs(alone - vectors).max() < 1e-5

    vectors_of_none, probabilities_of_none = encoder.encode([])
    assert vectors_of_none.shape == (0, 16) and probabilities_of_none is not None and probabilities_of_none.shape == (0, 3)

    caplog.clear()
    again = build_encoder(config, folder, CPU, tmp_path)
    assert "converted" not in caplog.text
    assert np.array_equal(again.encode(crops)[0], vectors)


def test_a_network_too_large_for_batches_of_its_own_gives_the_same(
    encoder_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder, crops = named(encoder_weights), encoder_weights.parent, photos(11)
    by_batch = build_encoder(config, folder, CPU, tmp_path)
    assert by_batch.network.batches == (8, 4, 2, 1)
    monkeypatch.setattr(runtime, "MAX_BYTES_BY_BATCH", 0)
    any_batch = build_encoder(config, folder, CPU, tmp_path)
    assert any_batch.network.batches == (8,)
    assert np.abs(by_batch.encode(crops)[0] - any_batch.encode(crops)[0]).max() < 1e-6


# A small member of each family, and the width of its features.
FEATURES = {
    "mobilenet_v2": ("mobilenet_v2", 1280),
    "mobilenet_v3": ("mobilenet_v3_small", 576),
    "efficientnet": ("efficientnet_b0", 1280),
    "convnext": ("convnext_tiny", 768),
    "resnet": ("resnet18", 512),
    "resnext": ("resnext50_32x4d", 2048),
    "wide_resnet": ("wide_resnet50_2", 2048),
    "regnet": ("regnet_x_400mf", 400),
    "vit": ("vit_b_32", 768),
    "swin": ("swin_t", 768),
}


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_penultimate_layer_of_each_family(family: str) -> None:
    arch, width = FEATURES[family]
    device = "cpu" if family == "regnet" else "meta"  # regnet's initialisation reads values
    with torch.device(device), torch.inference_mode():
        embeddings, logits = EmbeddingNet(arch, None, 0).eval()(torch.zeros(1, 3, 224, 224))
    assert embeddings.shape == (1, width) and logits is None


def test_a_whole_torchvision_network_gives_its_penultimate_layer(tmp_path: Path) -> None:
    torch.manual_seed(4)
    network = torchvision.models.resnet18(weights=None).eval()
    save_file(network.state_dict(), tmp_path / "resnet.safetensors")
    config = EncoderConfig(kind="torchvision", arch="resnet18", weights="resnet.safetensors")
    inputs = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        (embeddings,) = build_module(config, tmp_path).eval()(inputs)
        network.fc = torch.nn.Identity()
        assert torch.allclose(embeddings, torch.nn.functional.normalize(network(inputs)), atol=1e-6)
    with pytest.raises(BundleError, match="no projection, head or spatial transformer"):
        build_module(config.model_copy(update={"embedding_dim": 64}), tmp_path)


def test_cells_tell_where_on_an_item_something_is(tmp_path: Path) -> None:
    """Cells of adaptive pooling beside the mean, in the network as it is served; a map of 7 has overlapping thirds."""
    torch.manual_seed(8)
    map_NFHW = torch.rand(2, 5, 7, 4)
    mean, cells = pyramid(map_NFHW, 3).split([5, 45], dim=1)
    torch.testing.assert_close(mean, map_NFHW.mean((2, 3)))
    pooled = torch.nn.functional.adaptive_avg_pool2d(map_NFHW, 3) - mean[:, :, None, None]
    torch.testing.assert_close(cells.view(2, 9, 5), pooled.flatten(2).transpose(1, 2))

    config = ENCODER.model_copy(update={"pool_cells": 3, "weights": "cells.safetensors", "preprocess": Preprocess(size_px=160)})
    net = EmbeddingNet("mobilenet_v3_small", 16, 3, pool_cells=3)
    settle_norms(net, lambda: net(torch.from_numpy(network_input(photos(32), config.preprocess))))
    save_file(net.state_dict(), tmp_path / "cells.safetensors")
    crops = photos(5)
    vectors, _ = build_encoder(config, tmp_path, CPU, tmp_path).encode(crops)
    with torch.inference_mode():
        expected = net(torch.from_numpy(network_input(crops, config.preprocess)))[0].numpy()
    assert np.abs(vectors - expected).max() < 1e-5

    with pytest.raises(
        BundleError, match=r"arch 'vit_b_32' with pool_cells=2: allowed: mobilenet, efficientnet models; or set 1"
    ):
        EmbeddingNet("vit_b_32", 16, 0, pool_cells=2)


def test_stride_2_convolutions_pad_as_tensorflow() -> None:
    net = EmbeddingNet("mobilenet_v2", None, 0, tf_same_padding=True)
    same = [layer for layer in net.modules() if isinstance(layer, SamePadConv2d)]
    assert len(same) == 5
    assert net.state_dict().keys() == EmbeddingNet("mobilenet_v2", None, 0).state_dict().keys()
    image = torch.rand(1, 3, 8, 8)
    first = same[0]
    padded = torch.nn.functional.pad(image, (0, 1, 0, 1))
    assert torch.equal(first(image), torch.nn.functional.conv2d(padded, first.weight, first.bias, 2))
    for depthwise, side in zip(same[1:], (8, 9, 12, 7), strict=True):
        image = torch.rand(2, depthwise.in_channels, side, side)
        torch.testing.assert_close(depthwise.train()(image), depthwise.eval()(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "mobilenet_v3_large"}, "not the weights of mobilenet_v3_large: it (lacks|has unknown|has wrong shapes)"),
        ({"embedding_dim": 32}, "wrong shapes.*projection.weight .16, 576., expected .32, 576."),
        ({"labels": ()}, "has unknown 2 keys, such as head.bias; head.weight"),
        ({"arch": "alexnet2"}, "arch 'alexnet2' is not known"),
        ({"weights": "absent.safetensors"}, "absent.safetensors: no such weights file"),
        ({"weights": "cut.safetensors"}, "cut.safetensors: not a whole safetensors file"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    encoder_weights: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    data = encoder_weights.read_bytes()
    (tmp_path / encoder_weights.name).write_bytes(data)
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=message) as caught:
        build_encoder(named(encoder_weights).model_copy(update=change), tmp_path, CPU, tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(encoder_weights: Path, tmp_path: Path) -> None:
    tensors = load_file(encoder_weights)
    tensors["projection.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(BundleError, match="not finite"):
        build_encoder(named(tmp_path / "nan.safetensors"), tmp_path, CPU, tmp_path)


@pytest.mark.slow
def test_open_clip_image_tower(tmp_path: Path) -> None:
    """On the smallest tower open_clip ships, with random weights."""
    torch.manual_seed(6)
    arch = "ViT-S-32-alt"
    save_file(
        {k: v for k, v in open_clip_model(arch).state_dict().items() if k.startswith("visual.")}, tmp_path / "clip.safetensors"
    )
    config = EncoderConfig(
        kind="open_clip", arch=arch, weights="clip.safetensors", preprocess=Preprocess(size_px=224, resize_px=224)
    )
    encoder = build_encoder(config, tmp_path, CPU, tmp_path)
    vectors, probabilities = encoder.encode(photos(3))
    assert vectors.shape == (3, 256) and probabilities is None
    with torch.inference_mode():
        (expected,) = build_module(config, tmp_path).eval()(torch.from_numpy(network_input(photos(3), config.preprocess)))
    assert np.abs(vectors - expected.numpy()).max() < 1e-5
    with pytest.raises(BundleError, match="neither a file nor a tag"):
        open_clip_model("ViT-B-32", "no-such-tag")


def test_a_device_that_is_not_there_is_an_error(encoder_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"runtime.device=cuda:9.*set runtime.device=cpu"):
        build_encoder(named(encoder_weights), encoder_weights.parent, RuntimeConfig(device="cuda:9"), tmp_path)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(encoder_weights: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    config, folder = named(encoder_weights), encoder_weights.parent
    on_cpu = build_encoder(config, folder, CPU, tmp_path).encode(photos(9))[0]
    on_cuda = build_encoder(config, folder, RuntimeConfig(device="cuda"), tmp_path).encode(photos(9))[0]
    assert np.linalg.norm(on_cuda, axis=1) == pytest.approx(1, abs=1e-4)
    assert (on_cpu * on_cuda).sum(axis=1).min() > 0.99  # bf16 has 8 bits


def test_network_input_values_order_and_geometry() -> None:
    red = np.zeros((40, 80, 3), np.uint8)
    red[..., 0] = 255
    plain = Preprocess(
        size_px=16, resize="pad", pad_value=114, pad_at="top_left", scale=1, mean=(0, 0, 0), std=(1, 1, 1), channels="bgr"
    )
    (padded,) = network_input([red], plain)
    assert padded[:, :8].max(axis=(1, 2)).tolist() == [0, 0, 255] and (padded[:, 8:] == 114).all()
    centred = network_input([red], plain.model_copy(update={"pad_at": "centre"}))[0]
    assert (centred[2, 4:12] == 255).all() and (centred[2, :4] == 114).all() and (centred[2, 12:] == 114).all()
    normalised = network_input([red], Preprocess(size_px=16))[0][:, 8, 8]
    assert normalised == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], abs=1e-5)
    gradient = np.repeat(np.arange(80, dtype=np.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    cropped = network_input([gradient], Preprocess(size_px=16, resize_px=20, scale=1, mean=(0, 0, 0), std=(1, 1, 1)))[0][0, 8]
    assert cropped == pytest.approx(np.linspace(25, 55, 16) - 0.5, abs=1.1)  # the middle 32 of 80 columns: 24 to 56
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        network_input([np.zeros((4, 4), np.uint8)], plain)


@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_boxes_go_back_to_the_image(mode: str) -> None:
    config = Preprocess(size_px=100, resize=mode, pad_at="centre")  # type: ignore[arg-type]
    whole = [0, 0, 100, 100] if mode == "squash" else [0, 25, 100, 75]
    assert boxes_in_image(np.array([whole], np.float32), 200, 100, config)[0] == pytest.approx([0, 0, 200, 100])
