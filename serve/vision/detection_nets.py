"""Torchvision's detection networks as plain array functions, ready to be converted.

Letters: N images, A anchors, L labels (the background not counted), S side of the input in pixels, B boxes of one image.
"""

from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FrozenBatchNorm2d

from serve.vision.backbones import load_exactly, published_weights, read_tensors
from serve.vision.spec import BundleError

# Family -> a bias with one number a class, and how often the classes repeat in it (anchors a place).
CLASS_BIASES = {
    "ssdlite": ("head.classification_head.module_list.0.1.bias", 6),
    "fasterrcnn": ("roi_heads.box_predictor.cls_score.bias", 1),
}


class SsdAnchors(nn.Module):
    """An SSD before suppression: every anchor's box, and its score for every label."""

    def __init__(self, ssd: SSD) -> None:
        super().__init__()
        self.ssd = ssd

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, S, S) normalised images -> boxes (N, A, 4) in input pixels, scores (N, A, L) in [0, 1]."""
        features = list(self.ssd.backbone(images).values())
        outputs = self.ssd.head(features)
        anchors_A4 = self.ssd.anchor_generator(ImageList(images[:1], [(images.shape[2], images.shape[3])]), features)[0]
        offsets = outputs["bbox_regression"]
        anchors = anchors_A4[None].expand_as(offsets).reshape(-1, 4)
        boxes = self.ssd.box_coder.decode_single(offsets.reshape(-1, 4), anchors).reshape(offsets.shape)
        return boxes, outputs["cls_logits"].softmax(dim=2)[..., 1:]


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
    return SsdAnchors(network) if arch.startswith("ssdlite") else PhotoBoxes(network)


def torchvision_detector(arch: str, num_classes: int) -> nn.Module:
    """Torchvision's `arch` for inference with random weights; the background is one of `num_classes`. Raises BundleError."""
    if arch not in torchvision.models.list_models(module=torchvision.models.detection):
        raise BundleError(f"detector.arch={arch}: not a detector of torchvision")
    network: nn.Module = torchvision.models.get_model(arch, weights=None, weights_backbone=None, num_classes=num_classes)
    return network.eval()


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
