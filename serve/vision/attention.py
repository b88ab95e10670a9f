"""torch's attention layers written out, so that converters see what they can fuse.

nn.MultiheadAttention turns its input around seven times; OpenVINO keeps these turns and misses its fused attention. Measured on
ViT-B/32, INT8, one thread (tests/bench/bench_encoders.py): 12.7 ms an image written out, 14.6 as it is.

Letters: N images, T tokens that ask, S tokens that answer, W width.
"""

import torch
from torch import nn
from torch.nn import functional


class PlainAttention(nn.Module):
    """Attention with the weights of an nn.MultiheadAttention (batch first, one width), and its results."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.weight, self.bias, self.out = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Queries (N, T, W), keys and values (N, S, W) -> (N, T, W), and no weights. `attn_mask` is added to the scores."""
        assert not need_weights, "nobody reads them here"
        if query is key and key is value:
            parts = functional.linear(query, self.weight, self.bias).chunk(3, dim=-1)
        else:
            biases = [None] * 3 if self.bias is None else self.bias.chunk(3)
            inputs = zip((query, key, value), self.weight.chunk(3), biases, strict=True)
            parts = tuple(functional.linear(tokens, weight, bias) for tokens, weight, bias in inputs)
        num, length, width = query.shape
        q, k, v = (part.view(num, part.shape[1], self.heads, width // self.heads).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).reshape(num, length, width)), None


def write_out_attention(module: nn.Module) -> nn.Module:
    """`module` with PlainAttention in place of each attention layer that it can stand for, weights shared."""
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.MultiheadAttention) and layer.batch_first and layer.in_proj_weight is not None:
                setattr(parent, name, PlainAttention(layer))
    return module
