"""Attention written out gives what torch's layer gives."""

import pytest
import torch
from torch import nn

from serve.vision.attention import PlainAttention, write_out_attention


@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(bias: bool) -> None:
    torch.manual_seed(1)
    layer = nn.MultiheadAttention(16, 4, bias=bias, batch_first=True).eval()
    tokens, others = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    plain = PlainAttention(layer)
    with torch.inference_mode():
        for given, mask_given in (((tokens,) * 3, None), ((tokens,) * 3, mask), ((tokens, others, others), None)):
            expected = layer(*given, need_weights=False, attn_mask=mask_given)[0]
            assert torch.allclose(plain(*given, attn_mask=mask_given)[0], expected, atol=1e-6)


def test_layers_of_another_make_stay() -> None:
    other = nn.MultiheadAttention(16, 4, batch_first=False)
    widths = nn.MultiheadAttention(16, 4, kdim=8, vdim=8, batch_first=True)
    net = write_out_attention(nn.ModuleDict({"own": nn.MultiheadAttention(16, 4, batch_first=True), "a": other, "b": widths}))
    assert isinstance(net["own"], PlainAttention) and net["a"] is other and net["b"] is widths
