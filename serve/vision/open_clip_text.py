"""The text side of an open_clip model as a network of its own."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class TextTower(nn.Module):
    """(N, T) token ids as float32 -> (N, D) unit embeddings."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip
        for other in ("visual", "logit_scale", "logit_bias"):  # the photo's side, and what training alone reads
            if hasattr(clip, other):
                delattr(clip, other)

    def forward(self, ids_NT: Tensor) -> tuple[Tensor]:
        return (functional.normalize(self.clip.encode_text(ids_NT.long()).float()),)  # type: ignore[operator]


def text_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an open_clip model's text side, under TextTower's keys."""
    return {f"clip.{key}": tensor for key, tensor in state.items() if not key.startswith(("visual.", "logit_"))}
