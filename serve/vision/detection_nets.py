"""Torchvision's detection networks as plain array functions, ready to be converted.

Letters: N images, A anchors (FCOS: places), L labels (no background), S side of the input in pixels, B boxes of one image.
"""

from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from serve.vision.backbones import load_exactly, published_weights, read_tensors
from serve.vision.spec import BundleError

FCOS_SMALL = "fcos_mobilenet_v3_small"  # torchvision has its parts, and builds FCOS on ResNet-50 only
FCOS_STRIDES = (8, 16, 32)
FCOS_CHANNELS, FCOS_CONVS = 64, 2  # of the pyramid, and a head: a quarter and half of torchvision's
# Family -> a bias with one number a class, and how often the classes repeat in it (anchors a place).
CLASS_BIASES = {
    "ssdlite": ("head.classification_head.module_list.0.1.bias", 6),
    "fcos": ("head.classification_head.cls_logits.bias", 1),
    "fasterrcnn": ("roi_heads.box_predictor.cls_score.bias", 1),
}


class OneStageNet(nn.Module):
    """A one-stage network before suppression: every anchor's box, and its score for every label."""

    def __init__(self, network: SSD | FCOS) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, S, S) normalised images -> boxes (N, A, 4) in input pixels, scores (N, A, L) in [0, 1]."""
        features = list(self.network.backbone(images).values())
        outputs = self.network.head(features)
        sizes = [(images.shape[2], images.shape[3])]
        anchors_A4 = self.network.anchor_generator(ImageList(images[:1], sizes), features)[0]
        return self.decoded(outputs, anchors_A4[None].expand_as(outputs["bbox_regression"]))

    def decoded(self, outputs: dict[str, torch.Tensor], anchors_NA4: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes and scores of what the heads say."""
        raise NotImplementedError


class SsdAnchors(OneStageNet):
    """SSD: one softmax an anchor, with the background in it."""

    def decoded(self, outputs: dict[str, torch.Tensor], anchors_NA4: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        offsets = outputs["bbox_regression"]
        boxes = self.network.box_coder.decode_single(offsets.reshape(-1, 4), anchors_NA4.reshape(-1, 4)).reshape(offsets.shape)
        return boxes, outputs["cls_logits"].softmax(dim=2)[..., 1:]


class FcosPlaces(OneStageNet):
    """FCOS: a sigmoid a label, weighed by how central the place is; nothing is trained to be the background's label."""

    def decoded(self, outputs: dict[str, torch.Tensor], anchors_NA4: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes = self.network.box_coder.decode(outputs["bbox_regression"], anchors_NA4)
        scores = (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()
        return boxes, scores[..., 1:]


class PhotoBoxes(nn.Module):
    """A two-stage network on one photo."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(1, 3, H, W) in [0, 1] -> boxes (B, 4) in its pixels, scores (B,), classes (B,) of which 0 is the background."""
        found = self.network([images[0]])[0]
        return found["boxes"], found["scores"], found["labels"]


def detection_net(arch: str, path: Path) -> nn.Module:
    """Torchvision's detector `arch` with the weights of `path` under torchvision's key names. Raises BundleError."""
    tensors = read_tensors(path)
    key, repeats = next(entry for family, entry in CLASS_BIASES.items() if arch.startswith(family))
    if key not in tensors:
        raise BundleError(f"{path}: not the weights of {arch}: it lacks {key}")
    network = torchvision_detector(arch, len(tensors[key]) // repeats)
    load_exactly(network, tensors, path, arch)
    if arch.startswith("ssdlite"):
        return SsdAnchors(network)
    return FcosPlaces(network) if arch == FCOS_SMALL else PhotoBoxes(network)


def torchvision_detector(arch: str, num_classes: int) -> nn.Module:
    """Torchvision's `arch` for inference with random weights; the background is one of `num_classes`. Raises BundleError."""
    if arch == FCOS_SMALL:
        fcos: nn.Module = fcos_mobilenet_v3_small(num_classes)
        return fcos.eval()
    if arch not in torchvision.models.list_models(module=torchvision.models.detection):
        raise BundleError(f"detector.arch={arch}: not a detector of torchvision")
    network: nn.Module = torchvision.models.get_model(arch, weights=None, weights_backbone=None, num_classes=num_classes)
    return network.eval()


def fcos_mobilenet_v3_small(num_classes: int) -> FCOS:
    """FCOS (arXiv:1904.01355) on MobileNetV3-small: no anchors to match, so that it learns from few thousand photos.

    Its backbone has the layers of an encoder of that name, so it can start from one.
    """
    layers = torchvision.models.get_model("mobilenet_v3_small", weights=None).features
    pyramid = BackboneWithFPN(
        layers, {"3": "0", "8": "1", "12": "2"}, [layers[place].out_channels for place in (3, 8, 12)], FCOS_CHANNELS,
        extra_blocks=NoMoreLevels(), norm_layer=nn.BatchNorm2d,
    )  # fmt: skip
    return FCOS(
        pyramid, num_classes, fixed_size=(224, 224),
        anchor_generator=AnchorGenerator(tuple((stride,) for stride in FCOS_STRIDES), ((1.0,),) * len(FCOS_STRIDES)),
        head=FCOSHead(FCOS_CHANNELS, 1, num_classes, FCOS_CONVS), score_thresh=0.02, nms_thresh=0.5,
    )  # fmt: skip


class NoMoreLevels(ExtraFPNBlock):  # type: ignore[misc]
    """Items fill a good part of a photo: the pyramid ends where the backbone ends."""

    def forward(
        self, results: list[torch.Tensor], x: list[torch.Tensor], names: list[str]
    ) -> tuple[list[torch.Tensor], list[str]]:
        return results, names


def published_labels(arch: str, tag: str) -> tuple[str, ...]:
    """Label names of torchvision's published weights, without the background. Raises BundleError."""
    return tuple(published_weights(arch, tag).meta["categories"][1:])


def downloaded_detector(arch: str, tag: str) -> dict[str, torch.Tensor]:
    """Torchvision's published weights `tag` of `arch`, as `torchvision_detector` takes them. Raises BundleError, OSError."""
    published = torchvision.models.get_model(arch, weights=published_weights(arch, tag))
    return with_standard_norms(published, torchvision_detector(arch, len(published_labels(arch, tag)) + 1))


def with_standard_norms(published: nn.Module, plain: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of `published`, whose frozen batch norms may use another epsilon than those of `plain`.

    Torchvision sets it to 0 for its COCO weights; the difference goes into the variances, so the networks stay equal.
    """
    tensors = dict(published.state_dict())
    plain_eps = {name: layer.eps for name, layer in plain.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    for name, layer in published.named_modules():
        if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
            tensors[f"{name}.running_var"] = tensors[f"{name}.running_var"] + (layer.eps - plain_eps[name])
    return tensors
