"""The networks that turn pixels into embeddings, as torch modules; weights come from files (see `encoder`).

Letters: N images, F features of a backbone, D numbers of an embedding, C categories.
"""

import torch
import torchvision
from torch import nn
from torch.nn import functional

# Family of torchvision architectures -> its classifier, which is replaced by the identity to leave the (N, F) features.
CLASSIFIERS = {
    "mobilenet_v2": "classifier",
    "mobilenet_v3": "classifier",
    "efficientnet": "classifier",
    "convnext": "classifier.2",  # 0 and 1 are the norm of the features, and flatten
    "resnet": "fc",
    "resnext": "fc",
    "wide_resnet": "fc",
    "regnet": "fc",
    "vit": "heads",
    "swin": "head",
}


class UnknownArchError(ValueError):
    """An architecture name that is not torchvision's, or whose classifier is not known here."""


def classifier_of(arch: str) -> str:
    """Dotted name of the classifier in torchvision's `arch`. Raises UnknownArchError."""
    family = next((family for family in CLASSIFIERS if arch.startswith(family)), None)
    if family is None or arch not in torchvision.models.list_models(module=torchvision.models):
        raise UnknownArchError(f"arch {arch!r} is not known; allowed: torchvision's {', '.join(sorted(CLASSIFIERS))} models")
    return CLASSIFIERS[family]


class EmbeddingNet(nn.Module):
    """Backbone -> projection -> unit embedding, with a category head on the projection.

    `arch`: a torchvision classification network (see CLASSIFIERS); its weights start random.
    `embedding_dim`: D of the projection; None = no projection, D = F.
    `num_labels`: C of the head; 0 = no head.
    `tf_same_padding`: stride-2 convolutions pad as TensorFlow does (see `SamePadConv2d`).
    Keys of the state dict: backbone.*, projection.weight, head.weight, head.bias.
    """

    def __init__(self, arch: str, embedding_dim: int | None, num_labels: int, tf_same_padding: bool = False) -> None:
        super().__init__()
        self.backbone, num_features = headless(arch)
        if tf_same_padding:
            pad_as_tensorflow(self.backbone)
        self.dim = embedding_dim or num_features
        self.projection = nn.Linear(num_features, embedding_dim, bias=False) if embedding_dim else None
        self.head = nn.Linear(self.dim, num_labels) if num_labels else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, 3, S, S) preprocessed images -> (N, D) unit embeddings and (N, C) logits or None."""
        features = self.backbone(images)
        if self.projection is not None:
            features = self.projection(features)
        return functional.normalize(features), None if self.head is None else self.head(features)


def headless(arch: str) -> tuple[nn.Module, int]:
    """Torchvision's `arch` with random weights and without its classifier, and F, the width of its features."""
    name = classifier_of(arch)
    network = torchvision.models.get_model(arch, weights=None)
    classifier = network.get_submodule(name)
    num_features = next(layer.in_features for layer in classifier.modules() if isinstance(layer, nn.Linear))
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return network, num_features


class SamePadConv2d(nn.Conv2d):
    """A stride-2 convolution padded as TensorFlow's SAME pads even inputs: the odd pixel goes right and bottom."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        (height, width), before = self.kernel_size, [(side - 2) // 2 for side in self.kernel_size]
        pads = (before[1], width - 2 - before[1], before[0], height - 2 - before[0])
        return functional.conv2d(functional.pad(input, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pad_as_tensorflow(network: nn.Module) -> None:
    """Replaces the stride-2 convolutions of `network` by SamePadConv2d, weights and key names kept."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Conv2d and layer.stride == (2, 2) and layer.kernel_size != (1, 1):
                same = SamePadConv2d(
                    layer.in_channels, layer.out_channels, (layer.kernel_size[0], layer.kernel_size[1]), 2,
                    groups=layer.groups, bias=layer.bias is not None,
                )  # fmt: skip
                same.load_state_dict(layer.state_dict())
                setattr(parent, name, same)
