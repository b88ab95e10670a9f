"""Detectors: boxes as torchvision itself gives them, in pixels of the photo, the same in every batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from serve.vision.boxes import iou
from serve.vision.detection_nets import torchvision_detector, with_standard_norms
from serve.vision.detector import NOTHING, Detections, build_detector, yolox_grid
from serve.vision.spec import BundleError, DetectorConfig, Preprocess, RuntimeConfig
from tests.vision.conftest import settle_norms

LABELS = ("bag", "cup", "shoe")


def pictures(count: int, side_px: int) -> list[np.ndarray]:
    """Blots of colour."""
    random = np.random.default_rng(8)
    return [
        np.kron(random.integers(0, 255, (8, 8, 3)), np.ones((side_px // 8, side_px // 8, 1))).astype(np.uint8)
        for _ in range(count)
    ]


def as_tensors(images: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255 for image in images]


def midpoint(scores: torch.Tensor, rank: int) -> float:
    """A threshold that the `rank` best scores pass, none of them by a hair."""
    ordered = scores.sort(descending=True).values
    gaps = ordered[rank - 10 : rank + 9] - ordered[rank - 9 : rank + 10]
    place = rank - 10 + int(gaps.argmax())
    return float(ordered[place : place + 2].mean())


def agree(found: Detections, expected: dict[str, torch.Tensor], min_score: float) -> int:
    """Checks `found` against torchvision's answer; the number of boxes."""
    kept = expected["scores"] > min_score
    assert len(found.scores) == int(kept.sum())
    assert np.abs(found.scores - expected["scores"][kept].numpy()).max(initial=0) < 5e-3  # random networks are ill-conditioned
    corners = np.abs(found.boxes[:, None] - expected["boxes"][kept].numpy()[None]).max(axis=2)  # IoU is no measure of slivers
    assert (corners.min(axis=1, initial=np.inf) < 1).all()
    assert sorted(found.labels) == sorted(LABELS[row - 1] for row in expected["labels"][kept].tolist())
    return len(found.scores)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["ssdlite320_mobilenet_v3_large", "fcos_mobilenet_v3_small"])
def test_one_stage_networks_give_torchvisions_boxes(tmp_path: Path, arch: str) -> None:
    torch.manual_seed(2)
    network = torchvision_detector(arch, 4)
    side_px = network.transform.fixed_size[0]
    mean, std = network.transform.image_mean, network.transform.image_std
    images = pictures(4, side_px)
    scaled = (torch.stack(as_tensors(images)) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    settle_norms(network, lambda: network.head(list(network.backbone(scaled).values())))
    if arch.startswith("fcos"):  # else a random network finds the same score everywhere
        for layer in ("classification_head.cls_logits", "regression_head.bbox_reg"):
            network.head.get_submodule(layer).weight.data *= 100
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    with torch.inference_mode():
        answers = network(as_tensors(images))
    # torchvision's FCOS takes class 0 for a label; nothing is trained to be one
    expected = [{key: values[answer["labels"] > 0] for key, values in answer.items()} for answer in answers]
    min_score = midpoint(torch.cat([answer["scores"] for answer in expected]), 40)
    config = DetectorConfig(
        kind="torchvision",
        arch=arch,
        weights="net.safetensors",
        labels=LABELS,
        min_score=min_score,
        nms_iou=network.nms_thresh,
        preprocess=Preprocess(size_px=side_px, resize="squash", mean=mean, std=std),
    )
    detector = build_detector(config, tmp_path, RuntimeConfig(), tmp_path)
    found = detector.detect(images)
    assert sum(agree(one, other, min_score) for one, other in zip(found, expected, strict=True)) > 0
    alone = detector.detect([images[2]])[0]
    assert np.abs(alone.boxes - found[2].boxes).max() < 1e-3 and alone.labels == found[2].labels

    cups = build_detector(config.model_copy(update={"keep_labels": ("cup",)}), tmp_path, RuntimeConfig(), tmp_path).detect(images)
    assert {label for one in cups for label in one.labels} == {"cup"}
    with pytest.raises(BundleError, match="scores 3 labels, but 1 are named"):
        build_detector(config.model_copy(update={"labels": ("item",)}), tmp_path, RuntimeConfig(), tmp_path)


@pytest.mark.slow
def test_faster_rcnn_gives_torchvisions_boxes_for_any_size(tmp_path: Path) -> None:
    torch.manual_seed(9)
    arch = "fasterrcnn_mobilenet_v3_large_320_fpn"
    network = torchvision_detector(arch, 4)
    images = [picture[:, :width] for picture, width in zip(pictures(2, 320), (320, 240), strict=True)]
    settle_norms(network, lambda: network.backbone(torch.stack(as_tensors(pictures(4, 320)))))
    network.roi_heads.box_predictor.cls_score.weight.data *= 4  # else a random network gives all classes the same
    save_file(network.state_dict(), tmp_path / "rcnn.safetensors")
    with torch.inference_mode():  # one by one: together, torchvision pads the photos to one size
        expected = [network([image])[0] for image in as_tensors(images)]
    min_score = 0.3
    config = DetectorConfig(
        kind="torchvision", arch=arch, weights="rcnn.safetensors", labels=LABELS, min_score=min_score, nms_iou=0.5
    )
    found = build_detector(config, tmp_path, RuntimeConfig(), tmp_path).detect(images)
    assert sum(agree(one, other, min_score) for one, other in zip(found, expected, strict=True)) > 0


def test_published_norms_keep_their_epsilon() -> None:
    published = nn.Sequential(FrozenBatchNorm2d(3, eps=0.0))
    published[0].running_var.uniform_(0.01, 2)
    plain = nn.Sequential(nn.BatchNorm2d(3)).eval()
    plain.load_state_dict(with_standard_norms(published, plain), strict=False)
    inputs = torch.rand(1, 3, 4, 4)
    assert torch.allclose(published(inputs), plain(inputs), atol=1e-6)


def test_no_detector_finds_nothing(tmp_path: Path) -> None:
    assert build_detector(DetectorConfig(), tmp_path, RuntimeConfig(), tmp_path).detect(pictures(2, 32)) == [NOTHING, NOTHING]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "yolov5"}, "detector.arch=yolov5: allowed"),
        (
            {"arch": "fasterrcnn_mobilenet_v3_large_fpn"},
            "not the weights of fasterrcnn_mobilenet_v3_large_fpn: it lacks roi_heads",
        ),
        ({"weights": "absent.safetensors"}, "absent.safetensors: no such weights file"),
        ({"keep_labels": ("hat",)}, "detector.keep_labels: hat: not among its 3 labels"),
        ({"kind": "onnx_yolox", "weights": "cut.onnx"}, "cut.onnx: OpenVINO cannot open it"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_file({"backbone.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x07")
    config = DetectorConfig(kind="torchvision", arch="ssdlite320_mobilenet_v3_large", weights="other.safetensors", labels=LABELS)
    with pytest.raises(BundleError, match=message) as caught:
        build_detector(config.model_copy(update=change), tmp_path, RuntimeConfig(), tmp_path)
    assert "\n" not in str(caught.value)


def test_yolox_grid_counts_cells_row_by_row() -> None:
    cells, strides = yolox_grid(416)
    assert cells.shape == (3549, 2) and strides.shape == (3549, 1)
    assert cells[:2].tolist() == [[0, 0], [1, 0]] and cells[52].tolist() == [0, 1]
    assert [int(strides[row, 0]) for row in (0, 52 * 52, 52 * 52 + 26 * 26)] == [8, 16, 32]


@pytest.mark.shared_data
def test_yolox_finds_every_fruit(photos_folder: Path) -> None:
    """The published YOLOX-nano on real photos: 15 photos, 22 boxes."""
    weights, folder = photos_folder.parent / "weights", photos_folder / "fruit-boxes"
    labels = tuple((weights / "coco_labels.txt").read_text().split("\n")[:80])
    config = DetectorConfig(kind="onnx_yolox", weights="yolox_nano.onnx", labels=labels, min_score=0.25)
    detector = build_detector(config, weights, RuntimeConfig(), weights)
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    boxed = [line for line in lines if line["boxes"]]
    images = [np.asarray(Image.open(folder / line["path"]).convert("RGB")) for line in boxed]
    best, right = [], 0
    for line, image, found in zip(boxed, images, detector.detect(images), strict=True):
        height, width = image.shape[:2]
        for known in line["boxes"]:
            overlaps = iou(np.array([known["box"]]) * [width, height, width, height], found.boxes)[0]
            best.append(overlaps.max())
            right += any(label == known["label"] for label, overlap in zip(found.labels, overlaps, strict=True) if overlap >= 0.5)
    assert len(best) == 22 and min(best) >= 0.5
    assert right >= 21
