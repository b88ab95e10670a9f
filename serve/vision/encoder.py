"""Crops to embeddings and category probabilities, by encoders chosen by name.

Letters: N crops, D numbers of an embedding, C categories, S side of the network's input in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from serve.vision.preprocess import network_input
from serve.vision.runtime import Network, torch_network
from serve.vision.spec import BundleError, EncoderConfig, Preprocess, RuntimeConfig

if TYPE_CHECKING:
    import torch


class Encoder(Protocol):
    """Pixels to vectors."""

    dim: int
    labels: tuple[str, ...]

    def encode(self, crops: Sequence[np.ndarray], quarters: Sequence[int] = (0,)) -> tuple[np.ndarray, np.ndarray | None]:
        """(H, W, 3) uint8 RGB crops -> (N, D) float32 unit embeddings, and (N, C) float32 probabilities or None.

        `quarters`: quarter turns (anticlockwise) after which they are seen: all crops after the first, then all after the second.
        """
        ...


class NetworkEncoder:
    """An encoder that is one network with its preprocessing. A crop's vector is the same in every batch.

    `cut`: numbers of each vector that are kept; none = all.
    """

    def __init__(self, network: Network, preprocess: Preprocess, labels: tuple[str, ...], cut: int | None = None) -> None:
        self.network, self.preprocess, self.labels, self.cut = network, preprocess, labels, cut
        blank = np.full((preprocess.size_px, preprocess.size_px, 3), 127, np.uint8)
        self.dim = 0
        self.dim = self.encode([blank])[0].shape[1]

    def encode(self, crops: Sequence[np.ndarray], quarters: Sequence[int] = (0,)) -> tuple[np.ndarray, np.ndarray | None]:
        """See Encoder. Raises BundleError when the network gives vectors that are not finite."""
        if not crops:
            return np.empty((0, self.dim), np.float32), np.empty((0, len(self.labels)), np.float32) if self.labels else None
        inputs = network_input(crops, self.preprocess)
        if tuple(quarters) != (0,):
            inputs = np.concatenate([np.rot90(inputs, turns, axes=(2, 3)) for turns in quarters])
        outputs = self.network.run(inputs)
        if not all(np.isfinite(output).all() for output in outputs):
            raise BundleError(
                "the encoder gives numbers that are not finite; its weights are damaged or need another preprocessing"
            )
        return unit_start(outputs[0], self.cut), outputs[1] if self.labels else None


def unit_start(vectors_ND: np.ndarray, dim: int | None) -> np.ndarray:
    """The first `dim` numbers (none = all) of each vector, at unit length: in bf16 it is not quite, and cut not at all."""
    kept_ND = vectors_ND[:, :dim]
    unit: np.ndarray = kept_ND / np.linalg.norm(kept_ND, axis=1, keepdims=True)
    return unit


def build_encoder(config: EncoderConfig, folder: Path, runtime: RuntimeConfig, cache: Path) -> NetworkEncoder:
    """The encoder of the bundle in `folder`, whose weights are a file there.

    `cache`: folder of converted networks of exactly this bundle. Raises BundleError, DeviceError.
    """
    size_px = config.preprocess.size_px
    shape = (2, 3, size_px, size_px)  # two, for a batch of one would be traced as a constant
    network = torch_network(
        lambda: build_module(config, folder), shape, (0,), cache / "encoder", runtime, cpu=config.runtime, folder=folder
    )
    return NetworkEncoder(network, config.preprocess, config.labels, config.dim)


def output_names(config: EncoderConfig) -> tuple[str, ...]:
    """What the network of an encoder gives, by name, as its ONNX files call it."""
    return ("embeddings", "probabilities") if config.labels else ("embeddings",)


def build_module(config: EncoderConfig, folder: Path) -> "torch.nn.Module":
    """The torch module of an encoder, with its weights. Raises BundleError."""
    from serve.vision.backbones import EmbeddingNet, ImageTower, Inference, load_exactly, read_tensors

    assert config.weights is not None, "a bundle names its weights"
    path = folder / config.weights
    tensors = read_tensors(path)
    network: torch.nn.Module
    if config.kind == "transformers":
        from serve.vision.transformers_nets import SiglipImage, siglip_side

        assert config.network_config is not None, "read_config has checked it"
        return Inference(siglip_side(SiglipImage, folder / config.network_config, tensors, path))
    if config.kind == "open_clip":
        network = ImageTower(open_clip_model(config.arch))
        tensors = {key: tensor for key, tensor in tensors.items() if key.startswith("visual.")}
    else:
        network = EmbeddingNet(
            config.arch, config.embedding_dim, len(config.labels), config.tf_same_padding, config.spatial_transformer,
            config.pool_cells,
        )  # fmt: skip
        tensors = embedding_keys(tensors, config, path)
    load_exactly(network, tensors, path, config.arch)
    return Inference(network)


def embedding_keys(tensors: "dict[str, torch.Tensor]", config: EncoderConfig, path: Path) -> "dict[str, torch.Tensor]":
    """`tensors` under EmbeddingNet's keys: as they are, or a whole torchvision network without its classifier."""
    from serve.vision.backbones import classifier_of

    if any(key.startswith("backbone.") for key in tensors):
        return tensors
    classifier = classifier_of(config.arch) + "."
    if not any(key.startswith(classifier) for key in tensors):
        raise BundleError(f"{path}: not the weights of {config.arch}: neither backbone.* keys nor its classifier {classifier}*")
    if config.labels or config.embedding_dim or config.spatial_transformer or config.pool_cells > 1:
        raise BundleError(
            f"{path}: weights of a plain {config.arch}; they have no projection, head or spatial transformer: "
            "drop embedding_dim, labels, spatial_transformer and pool_cells"
        )
    return {f"backbone.{key}": tensor for key, tensor in tensors.items() if not key.startswith(classifier)}


def open_clip_model(arch: str, pretrained: str | None = None) -> "torch.nn.Module":
    """open_clip's model `arch`, random or with the published weights `pretrained`. Raises BundleError."""
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise BundleError("encoder kind open_clip: the package open-clip-torch is not installed here") from error
    if arch not in open_clip.list_models():
        raise BundleError(f"arch {arch!r} is not known to open_clip; allowed: {', '.join(open_clip.list_models()[:8])}, ...")
    if pretrained is not None and pretrained not in open_clip.list_pretrained_tags_by_model(arch):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch))
        raise BundleError(f"weights {pretrained!r}: neither a file nor a tag of open_clip's {arch}; allowed: {tags}")
    model: torch.nn.Module = open_clip.create_model(arch, pretrained=pretrained)
    return model
