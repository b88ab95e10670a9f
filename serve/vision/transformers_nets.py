"""Networks of the transformers library as plain array functions: SigLIP's two sides, and detectors that need no suppression.

A bundle holds the weights and the library's own description of the network (config.json), so it opens without a download.

Letters: N images or texts, S side of the input in pixels, T tokens, A boxes, L labels, D numbers of an embedding.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from serve.vision.backbones import load_exactly
from serve.vision.spec import BundleError

TWO_TOWERS = ("siglip",)  # model_type of its config.json: SigLIP, and SigLIP 2 of a fixed resolution
DETECTORS = {"yolos": "softmax", "rt_detr_v2": "sigmoid", "d_fine": "sigmoid"}  # model_type -> what turns logits into scores


class SiglipImage(nn.Module):
    """The image side."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision_model = model.get_submodule("vision_model")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, 3, S, S) preprocessed images -> (N, D) unit embeddings, and no logits."""
        return functional.normalize(self.vision_model(pixel_values=images).pooler_output.float()), None


class SiglipText(nn.Module):
    """The text side. Its texts are all T tokens long, padded, and nothing is masked: that is how it was trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.text_model = model.get_submodule("text_model")

    def forward(self, ids_NT: torch.Tensor) -> tuple[torch.Tensor]:
        """(N, T) token ids as float32 -> (N, D) unit embeddings."""
        return (functional.normalize(self.text_model(input_ids=ids_NT.long()).pooler_output.float()),)


class QueryBoxes(nn.Module):
    """YOLOS, RT-DETRv2, D-FINE: a fixed number of boxes, each with its scores."""

    def __init__(self, model: nn.Module, scores: str) -> None:
        super().__init__()
        self.model, self.scores = model, scores

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, S, S) preprocessed images -> boxes (N, A, 4) in input pixels, scores (N, A, L) in [0, 1]."""
        found = self.model(pixel_values=images)
        centres, sides = found.pred_boxes[..., :2], found.pred_boxes[..., 2:]
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1) * images.shape[-1]
        logits = found.logits
        return boxes, logits.softmax(dim=-1)[..., :-1] if self.scores == "softmax" else logits.sigmoid()


def read_network_config(path: Path, allowed: tuple[str, ...]) -> Any:
    """The library's config of the network that `path` describes. Raises BundleError."""
    from transformers import AutoConfig

    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not a config.json of the transformers library: {error}") from error
    kind = described.pop("model_type", None) if isinstance(described, dict) else None
    if kind not in allowed:
        raise BundleError(f"{path}: model_type {kind!r}; allowed: {', '.join(allowed)}")
    return AutoConfig.for_model(kind, **described)


def siglip_side(
    side: type[SiglipImage] | type[SiglipText], config: Path, tensors: dict[str, torch.Tensor], path: Path
) -> nn.Module:
    """One side of a SigLIP with its part of the weights `tensors` of the file `path`. Raises BundleError."""
    from transformers import SiglipModel

    network = side(SiglipModel(read_network_config(config, TWO_TOWERS)))
    prefix = "vision_model." if side is SiglipImage else "text_model."
    load_exactly(network, {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}, path, "siglip")
    return network


def query_boxes(config: Path, tensors: dict[str, torch.Tensor], path: Path) -> nn.Module:
    """A detector with the weights `tensors` of the file `path`. Raises BundleError."""
    from transformers import AutoModelForObjectDetection

    described = read_network_config(config, tuple(DETECTORS))
    described.use_pretrained_backbone = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForObjectDetection.from_config(described)
    load_exactly(model, tensors, path, described.model_type)
    return QueryBoxes(model.eval(), DETECTORS[described.model_type])


def labels_of(config: Path) -> tuple[str, ...]:
    """Names of a detector's outputs, in their order. Raises BundleError."""
    names: dict[int, str] = read_network_config(config, tuple(DETECTORS)).id2label
    return tuple(names[row] for row in sorted(names))


def downloaded(arch: str, side: str) -> tuple[str, dict[str, torch.Tensor]]:
    """The library's published model `arch` (owner/name): its config.json, and its tensors. Raises OSError.

    `side`: vision_model, text_model, or detector for the whole of a detector.
    """
    from transformers import AutoModel, AutoModelForObjectDetection

    model = (AutoModelForObjectDetection if side == "detector" else AutoModel).from_pretrained(arch)
    state = dict(model.state_dict())
    if side != "detector":
        state = {key: tensor for key, tensor in state.items() if key.startswith(f"{side}.")}
    return model.config.to_json_string(use_diff=False), state


def downloaded_tokenizer(arch: str) -> str:
    """The tokenizer of a published model, as a file of the `tokenizers` library. Raises OSError."""
    from transformers import AutoTokenizer

    text: str = AutoTokenizer.from_pretrained(arch).backend_tokenizer.to_str()
    return text
