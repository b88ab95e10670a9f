"""Images to boxes, by detectors chosen by name.

Letters: N images, A anchors of a network, L labels, S side of the network's input in pixels, B boxes of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from serve.vision.boxes import clip, suppress
from serve.vision.preprocess import boxes_in_image, network_input
from serve.vision.runtime import Network, file_network, torch_network
from serve.vision.spec import BundleError, DetectorConfig, Preprocess, RuntimeConfig

if TYPE_CHECKING:
    import torch

# What the architectures were trained with: torchvision's transforms, YOLOX's letterbox (its README and demo code).
SSDLITE_INPUT = Preprocess(size_px=320, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
YOLOX_INPUT = Preprocess(
    size_px=416, resize="pad", pad_value=114, pad_at="top_left", scale=1, mean=(0, 0, 0), std=(1, 1, 1), channels="bgr"
)
QUERY_INPUT = Preprocess(size_px=640, resize="squash", mean=(0, 0, 0), std=(1, 1, 1))  # RT-DETRv2 and D-FINE
YOLOX_STRIDES = (8, 16, 32)
ITEM = "item"  # the label of whatever a class-agnostic detector finds
TOP_CANDIDATES = 300  # boxes of one image that enter suppression: torchvision's topk_candidates of SSDlite


@dataclass(frozen=True)
class Detections:
    """What was found in one image: boxes (B, 4) float32 in its pixels, scores (B,) float32 best first, one label each."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]


NOTHING = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), ())


class Detector(Protocol):
    """Pixels to boxes."""

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Items in each of the (H, W, 3) uint8 RGB images."""
        ...


class WholeImage:
    """The detector that looks for nothing: the whole photo is searched."""

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return [NOTHING] * len(images)


class OneStageDetector:
    """A network on a square input that scores every anchor for every label: SSDlite, FCOS, YOLOX.

    Subclasses say how the network's outputs become boxes in its input's pixels and scores.
    """

    def __init__(self, network: Network, preprocess: Preprocess, labels: tuple[str, ...], config: DetectorConfig) -> None:
        self.network, self.preprocess, self.labels, self.config = network, preprocess, labels, config
        blank = np.zeros((preprocess.size_px, preprocess.size_px, 3), np.uint8)
        num_labels = self.decode(network.run(network_input([blank], preprocess)))[1].shape[2]
        if num_labels != len(labels):
            raise BundleError(f"the detector scores {num_labels} labels, but {len(labels)} are named")

    def decode(self, outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The network's outputs -> boxes (N, A, 4) in pixels of its input and scores (N, A, L) in [0, 1]."""
        boxes_NA4, scores_NAL = outputs
        return boxes_NA4, scores_NAL

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        if not images:
            return []
        boxes_NA4, scores_NAL = self.decode(self.network.run(network_input(images, self.preprocess)))
        found = []
        for image, boxes_A4, scores_AL in zip(images, boxes_NA4, scores_NAL, strict=True):
            height, width = image.shape[:2]
            in_image = clip(boxes_in_image(boxes_A4, width, height, self.preprocess), width, height)
            anchors, label_rows = np.nonzero(scores_AL > self.config.min_score)
            found.append(kept(in_image[anchors], scores_AL[anchors, label_rows], label_rows, self.labels, self.config))
        return found


class YoloxDetector(OneStageDetector):
    """An ONNX export of YOLOX with raw outputs (N, A, 5 + L): offsets, log sizes, objectness, label scores."""

    def decode(self, outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        (raw,) = outputs
        cells_A2, strides_A1 = yolox_grid(self.preprocess.size_px)
        if raw.shape[1] != len(cells_A2):
            raise BundleError(f"YOLOX export with {raw.shape[1]} anchors: expected {len(cells_A2)} (strides {YOLOX_STRIDES})")
        centres, sides = (raw[..., :2] + cells_A2) * strides_A1, np.exp(raw[..., 2:4]) * strides_A1
        return np.concatenate([centres - sides / 2, centres + sides / 2], axis=2), raw[..., 4:5] * raw[..., 5:]


class TwoStageDetector:
    """Faster R-CNN: the network takes a whole photo of any size, resizes it itself and gives its final boxes.

    One photo a run, for the sizes differ.
    """

    def __init__(self, network: Network, labels: tuple[str, ...], config: DetectorConfig) -> None:
        self.network, self.labels, self.config = network, labels, config

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        found = []
        for image in images:
            pixels = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
            boxes_B4, scores_B, classes_B = self.network.run(pixels)
            enough = scores_B > self.config.min_score
            label_rows = classes_B[enough].astype(np.int64) - 1  # class 0 is the background
            found.append(kept(boxes_B4[enough], scores_B[enough], label_rows, self.labels, self.config))
        return found


def kept(
    boxes_B4: np.ndarray, scores_B: np.ndarray, label_rows_B: np.ndarray, labels: tuple[str, ...], config: DetectorConfig
) -> Detections:
    """Candidate boxes of one image -> its detections: wanted labels, best candidates, one box an item and label."""
    if config.keep_labels is not None:
        wanted = np.isin(label_rows_B, [row for row, label in enumerate(labels) if label in config.keep_labels])
        boxes_B4, scores_B, label_rows_B = boxes_B4[wanted], scores_B[wanted], label_rows_B[wanted]
    if config.class_agnostic:
        label_rows_B, labels = np.zeros_like(label_rows_B), (ITEM,)
    best = np.argsort(-scores_B, kind="stable")[:TOP_CANDIDATES]
    boxes_B4, scores_B, label_rows_B = boxes_B4[best], scores_B[best], label_rows_B[best]
    rows = suppress(boxes_B4, scores_B, config.nms_iou, label_rows_B)
    return Detections(
        boxes_B4[rows].astype(np.float32), scores_B[rows].astype(np.float32), tuple(labels[row] for row in label_rows_B[rows])
    )


def yolox_grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell (x, y) and stride of each anchor, stride by stride and row by row: (A, 2) and (A, 1) float32."""
    cells, strides = [], []
    for stride in YOLOX_STRIDES:
        rows, columns = np.mgrid[: size_px // stride, : size_px // stride]
        cells.append(np.stack([columns, rows], axis=2).reshape(-1, 2))
        strides.append(np.full((rows.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def build_detector(config: DetectorConfig, folder: Path, runtime: RuntimeConfig, cache: Path) -> Detector:
    """The detector of the bundle in `folder`, whose weights are a file there and whose labels are named.

    `cache`: folder of converted networks of exactly this bundle. Raises BundleError, DeviceError.
    """
    if config.kind == "none":
        return WholeImage()
    labels = config.labels
    assert config.weights is not None and isinstance(labels, tuple), "a bundle names weights and labels of its detector"
    unknown = sorted(set(config.keep_labels or ()) - set(labels))
    if unknown:
        raise BundleError(f"detector.keep_labels: {', '.join(unknown)}: not among its {len(labels)} labels")
    if config.kind == "onnx_yolox":
        network = file_network(folder / (config.runtime.network or config.weights), config.runtime, runtime, one_by_one=True)
        return YoloxDetector(network, input_of(config), labels, config)
    if config.kind == "torchvision" and not (config.arch or "").startswith(("ssdlite", "fcos_mobilenet", "fasterrcnn")):
        raise BundleError(
            f"detector.arch={config.arch}: allowed: ssdlite320_mobilenet_v3_large, fcos_mobilenet_v3_small "
            "and torchvision's fasterrcnn_*"
        )
    preprocess = input_of(config)
    shape = (1, 3, 320, 416) if config.two_stage else (2, 3, preprocess.size_px, preprocess.size_px)
    network = torch_network(
        lambda: detector_module(config, folder), shape, (2, 3) if config.two_stage else (0,), cache / "detector", runtime,
        cpu=config.runtime, folder=folder, half=False,  # boxes need float32: bf16 has 8 bits for a coordinate
    )  # fmt: skip
    if config.two_stage:
        return TwoStageDetector(network, labels, config)
    return OneStageDetector(network, preprocess, labels, config)


def input_of(config: DetectorConfig) -> Preprocess:
    """What a one-stage detector's network sees."""
    return config.preprocess or {"onnx_yolox": YOLOX_INPUT, "transformers": QUERY_INPUT}.get(config.kind, SSDLITE_INPUT)


def detector_module(config: DetectorConfig, folder: Path) -> "torch.nn.Module":
    """The torch module of a detector, with its weights. Raises BundleError."""
    if config.kind == "transformers":
        from serve.vision.backbones import read_tensors
        from serve.vision.transformers_nets import query_boxes

        assert config.network_config is not None and config.weights is not None, "read_config has checked it"
        path = folder / config.weights
        return query_boxes(folder / config.network_config, read_tensors(path), path)
    from serve.vision.detection_nets import detection_net

    assert config.arch is not None and config.weights is not None, "a bundle names them"
    return detection_net(config.arch, folder / config.weights)
