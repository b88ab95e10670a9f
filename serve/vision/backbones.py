"""The networks that turn pixels into embeddings, as torch modules; weights come from files (see `encoder`).

Letters: N images, F features of a backbone, D numbers of an embedding, C categories.
"""

from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from serve.vision.spec import BundleError

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
MAPPED = ("mobilenet", "efficientnet")  # families whose features are the mean of `backbone.features`


def classifier_of(arch: str) -> str:
    """Dotted name of the classifier in torchvision's `arch`. Raises BundleError."""
    family = next((family for family in CLASSIFIERS if arch.startswith(family)), None)
    if family is None or arch not in torchvision.models.list_models(module=torchvision.models):
        raise BundleError(f"arch {arch!r} is not known; allowed: torchvision's {', '.join(sorted(CLASSIFIERS))} models")
    return CLASSIFIERS[family]


class EmbeddingNet(nn.Module):
    """Backbone -> projection -> unit embedding, with a category head on the projection.

    `arch`: a torchvision classification network (see CLASSIFIERS); its weights start random.
    `embedding_dim`: D of the projection; None = no projection, D = F.
    `num_labels`: C of the head; 0 = no head.
    `tf_same_padding`: stride-2 convolutions pad as TensorFlow does (see `SamePadConv2d`).
    `spatial_transformer`: a SpatialTransformer before the backbone.
    `pool_cells`: cells a side of the last map that count beside its mean (see `pyramid`): F is 1 + cells^2 times as wide.
    Keys of the state dict: backbone.*, projection.weight, head.weight, head.bias, transformer.*.
    """

    def __init__(
        self,
        arch: str,
        embedding_dim: int | None,
        num_labels: int,
        tf_same_padding: bool = False,
        spatial_transformer: bool = False,
        pool_cells: int = 1,
    ) -> None:
        super().__init__()
        self.transformer = SpatialTransformer() if spatial_transformer else None
        self.backbone, num_features = headless(arch)
        self.pool_cells = pool_cells
        if pool_cells > 1:
            if not arch.startswith(MAPPED):
                raise BundleError(f"arch {arch!r} with pool_cells={pool_cells}: allowed: {', '.join(MAPPED)} models; or set 1")
            num_features *= 1 + pool_cells**2
        if tf_same_padding:
            pad_as_tensorflow(self.backbone)
        self.dim = embedding_dim or num_features
        self.projection = nn.Linear(num_features, embedding_dim, bias=False) if embedding_dim else None
        self.head = nn.Linear(self.dim, num_labels) if num_labels else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, 3, S, S) preprocessed images -> (N, D) unit embeddings and (N, C) logits or None."""
        if self.transformer is not None:
            images = self.transformer(images)
        features = self.features(images)
        if self.projection is not None:
            features = self.projection(features)
        return functional.normalize(features.float()), None if self.head is None else self.head(features)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> (N, F) what the projection is given."""
        if self.pool_cells == 1:
            pooled: torch.Tensor = self.backbone(images)
            return pooled
        return pyramid(self.backbone.get_submodule("features")(images), self.pool_cells)


def pyramid(map_NFHW: torch.Tensor, cells: int) -> torch.Tensor:
    """(N, F * (1 + cells^2)): the mean of a map, and how the mean of each of its `cells` x `cells` parts differs from it.

    The mean alone forgets where on an item something is (spatial pyramid pooling, arXiv:1406.4729). Differences, so that a
    projection of the mean goes on as it is with zeros for the cells. Parts are those of adaptive average pooling.
    """
    mean_NF = map_NFHW.mean((2, 3))
    rows, columns = ([(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)] for side in map_NFHW.shape[2:])
    parts = [map_NFHW[:, :, top:bottom, left:right].mean((2, 3)) - mean_NF for top, bottom in rows for left, right in columns]
    return torch.cat([mean_NF, *parts], 1)


class SpatialTransformer(nn.Module):
    """Turns, shifts and zooms each image by an affine map that a small network reads off it (arXiv:1506.02025).

    Starts as the identity. The network looks at the image shrunk to LOOK_PX.
    """

    LOOK_PX = 48

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 6 * 6, 32), nn.ReLU(),
        )  # fmt: skip
        self.affine = nn.Linear(32, 6)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> the same shape, edges repeated beyond the image."""
        small = functional.interpolate(images, size=(self.LOOK_PX, self.LOOK_PX), mode="bilinear", align_corners=False)
        theta = self.affine(self.look(small)).view(-1, 2, 3)
        side = images.shape[-1]
        ticks = (torch.arange(side, device=images.device, dtype=theta.dtype) * 2 + 1) / side - 1
        rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
        points = torch.stack([columns, rows, torch.ones_like(rows)], -1).view(1, -1, 3)
        grid = torch.matmul(points, theta.transpose(1, 2)).view(-1, side, side, 2)
        warped: torch.Tensor = functional.grid_sample(
            images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
        )
        return warped


class Inference(nn.Module):
    """An embedding network as it is run: (N, 3, S, S) -> (N, D) unit embeddings, and (N, C) probabilities if it has a head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embeddings, logits = self.network(images)
        return (embeddings,) if logits is None else (embeddings, logits.float().softmax(dim=1))


class ImageTower(nn.Module):
    """The image side of an open_clip model, with EmbeddingNet's outputs."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.visual = clip.get_submodule("visual")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, 3, S, S) preprocessed images -> (N, D) unit embeddings, and no logits."""
        return functional.normalize(self.visual(images).float()), None


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
    """A stride-2 convolution padded as TensorFlow's SAME pads even inputs: the odd pixel goes right and bottom.

    In training, depthwise 3 x 3 ones are taken at every pixel, and every other one is kept: the same numbers, and the gradient of
    the strided one is two to five times slower on a CPU (a fifth of a MobileNetV2 step at 160 px).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and self.groups == self.in_channels and self.kernel_size == (3, 3) and self.dilation == (1, 1):
            dense = functional.conv2d(input, self.weight, self.bias, 1, 1, 1, self.groups)
            return dense[..., 1::2, 1::2]
        (height, width), before = self.kernel_size, [(side - 2) // 2 for side in self.kernel_size]
        pads = (before[1], width - 2 - before[1], before[0], height - 2 - before[0])
        return functional.conv2d(functional.pad(input, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def layers_of(backbone: nn.Module) -> list[nn.Module]:
    """The parts of a torchvision backbone in the order that an image passes them."""
    features = getattr(backbone, "features", None)
    return list(features.children() if isinstance(features, nn.Module) else backbone.children())


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


def published_weights(arch: str, tag: str) -> torchvision.models.Weights:
    """Torchvision's entry for its published weights `tag` of `arch` ("download" = the best). Raises BundleError."""
    if arch not in torchvision.models.list_models():
        raise BundleError(f"arch {arch!r} is not known to torchvision")
    weights = torchvision.models.get_model_weights(arch)
    tags = [entry.name for entry in weights]
    if tag not in ("download", *tags):
        raise BundleError(
            f"weights {tag!r}: neither a file nor a tag of torchvision's {arch}; allowed: download, {', '.join(tags)}"
        )
    return weights.DEFAULT if tag == "download" else weights[tag]


def load_exactly(network: nn.Module, tensors: dict[str, torch.Tensor], path: Path, arch: str) -> None:
    """Loads `tensors` (of the file `path`) into `network`. Raises BundleError on a key or shape that does not fit."""
    expected, tensors = without_counters(network.state_dict()), without_counters(tensors)
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}"
        for key, tensor in tensors.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    for problem, keys in (("lacks", missing), ("has unknown", unknown), ("has wrong shapes:", shapes)):
        if keys:
            raise BundleError(f"{path}: not the weights of {arch}: it {problem} {len(keys)} keys, such as {'; '.join(keys[:2])}")
    network.load_state_dict(tensors, strict=False)


def without_counters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` without the batch counters of batch norms, which only training reads."""
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The float32 tensors of a safetensors file. Raises BundleError when it is missing or damaged."""
    if not path.is_file():
        raise BundleError(f"{path}: no such weights file")
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a whole safetensors file: {error}") from error
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
