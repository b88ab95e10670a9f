"""The network that turns a text's tokens into an embedding, as a torch module; see `text` for how it is run.

Letters: N texts, T tokens of a text, W width, D numbers of an embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from serve.vision.spec import TextConfig
from serve.vision.text import PAD_ID

HIDDEN_FACTOR = 4  # width of a block's hidden layer, in W: arXiv:1706.03762


class TextNet(nn.Module):
    """Token and place embeddings -> pre-norm transformer -> mean over the tokens -> projection -> unit embedding."""

    def __init__(self, config: TextConfig, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width, padding_idx=PAD_ID)
        self.places = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, dim, bias=False)

    def forward(self, ids_NT: Tensor) -> tuple[Tensor]:
        """(N, T) token ids, PAD_ID behind a text's end, as float32 (exact below 2**24) -> (N, D) unit embeddings."""
        x_NTW, told_NT = self.words(ids_NT)
        weights_NT1 = told_NT[..., None].to(x_NTW.dtype)
        mean_NW = (x_NTW * weights_NT1).sum(1) / weights_NT1.sum(1).clamp(min=1)
        return (functional.normalize(self.projection(mean_NW).float()),)

    def words(self, ids_NT: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, W): each token as its text makes it; and (N, T) whether there is one."""
        ids_NT = ids_NT.long()
        told_NT = ids_NT != PAD_ID
        x_NTW = self.tokens(ids_NT) + self.places[: ids_NT.shape[1]]
        for block in self.blocks:
            x_NTW = block(x_NTW, told_NT)
        return self.norm(x_NTW), told_NT


class Block(nn.Module):
    """Attention and a hidden layer, each after a norm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden = nn.Sequential(nn.Linear(width, HIDDEN_FACTOR * width), nn.GELU(), nn.Linear(HIDDEN_FACTOR * width, width))

    def forward(self, x_NTW: Tensor, told_NT: Tensor) -> Tensor:
        num, length, width = x_NTW.shape
        parts = self.queries_keys_values(self.norm_attention(x_NTW)).view(num, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        hidden_keys = torch.where(told_NT, 0.0, -1e4)[:, None, None, :].to(query.dtype)  # finite: an empty text gives no NaN
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=hidden_keys)
        x_NTW = x_NTW + self.out(mixed.transpose(1, 2).reshape(num, length, width))
        added_NTW: Tensor = x_NTW + self.hidden(self.norm_hidden(x_NTW))
        return added_NTW
