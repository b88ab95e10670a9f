"""Texts to embeddings in the space of the photos, by text encoders chosen by name.

Letters: N texts, T tokens of the longest text, D numbers of an embedding.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from serve.vision.encoder import unit_start
from serve.vision.runtime import Network, torch_network
from serve.vision.spec import BundleError, CpuRuntime, EncoderConfig, RuntimeConfig, TextConfig

if TYPE_CHECKING:
    import torch

PAD_ID = 0  # of every tokenizer that this project trains; open_clip's pads with 0 too
UNKNOWN = "[UNK]"
Tokenize = Callable[[Sequence[str]], np.ndarray]  # texts -> (N, T) float32 token ids, padded with PAD_ID


class TextError(ValueError):
    """A text that says nothing to this encoder."""


class TextEncoder(Protocol):
    """Texts to vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 unit embeddings. Raises TextError for a text without any token."""
        ...


class NetworkTextEncoder:
    """A tokenizer and one network; `cut` as the encoder's."""

    def __init__(self, tokenize: Tokenize, network: Network, cut: int | None = None) -> None:
        self.tokenize, self.network, self.cut = tokenize, network, cut

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See TextEncoder."""
        for text in texts:
            if not text.strip():
                raise TextError("an empty text has no embedding")
        return unit_start(self.network.run(self.tokenize(texts))[0], self.cut)


def build_text_encoder(
    config: TextConfig | None, encoder: EncoderConfig, dim: int, folder: Path, runtime: RuntimeConfig, cache: Path
) -> TextEncoder | None:
    """The text encoder of the bundle in `folder`, whose vectors are `dim` wide like those of its photos; None without one.

    `cache`: folder of converted networks of exactly this bundle. Raises BundleError, DeviceError.
    """
    if config is None:
        return None
    if config.kind == "open_clip":
        tokenize = open_clip_tokenizer(encoder.arch)
    else:
        assert config.tokenizer is not None, "read_config has checked it"
        tokenize = file_tokenizer(folder / config.tokenizer, config.max_tokens, whole_length=config.kind == "transformers")
    example = (2, tokenize(["a text"]).shape[1])
    dynamic = (0, 1) if config.kind == "transformer" else (0,)  # the texts of the others all have one length
    network = torch_network(
        lambda: build_module(config, encoder, dim, folder), example, dynamic, cache / "text", runtime,
        cpu=CpuRuntime(), folder=folder, half=False,  # half precision has 8 bits for a token's number
    )  # fmt: skip
    return NetworkTextEncoder(tokenize, network, encoder.dim)


def build_module(config: TextConfig, encoder: EncoderConfig, dim: int, folder: Path) -> "torch.nn.Module":
    """The torch module of a text encoder, with its weights. Raises BundleError."""
    from serve.vision.backbones import load_exactly, read_tensors
    from serve.vision.text_net import TextNet

    assert config.weights is not None, "read_config has checked it"
    path = folder / config.weights
    tensors = read_tensors(path)
    network: torch.nn.Module
    if config.kind == "transformers":
        from serve.vision.transformers_nets import SiglipText, siglip_side

        assert encoder.network_config is not None, "read_config has checked it"
        return siglip_side(SiglipText, folder / encoder.network_config, tensors, path)
    if config.kind == "open_clip":
        from serve.vision.encoder import open_clip_model
        from serve.vision.open_clip_text import TextTower

        network, arch = TextTower(open_clip_model(encoder.arch)), encoder.arch
    else:
        network, arch = TextNet(config, dim), "transformer"
    load_exactly(network, tensors, path, arch)
    return network


def file_tokenizer(path: Path, max_tokens: int, *, whole_length: bool = False) -> Tokenize:
    """A `tokenizers` file. `whole_length`: every text is padded to `max_tokens`. Raises BundleError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library's own class of this fault is Exception
        raise BundleError(f"{path}: not a tokenizer file: {error}") from error
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=PAD_ID, length=max_tokens if whole_length else None)

    def tokenize(texts: Sequence[str]) -> np.ndarray:
        return np.array([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], np.float32)

    return tokenize


def open_clip_tokenizer(arch: str) -> Tokenize:
    """The tokenizer that open_clip's `arch` was trained with."""
    import open_clip

    tokenizer = open_clip.get_tokenizer(arch)
    return lambda texts: tokenizer(list(texts)).numpy().astype(np.float32)
