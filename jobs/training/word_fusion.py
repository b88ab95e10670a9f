"""A product's vector made of its photo and the words of its texts by attention, to be held against both side by side.

Learned beside the encoder, which learns nothing from it: photos find products by photos as well as without it.
Letters: N crops, U products, T tokens of a text, W width of a token, H heads, D embedding dimensions.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.training.texts import TextTask

HIDDEN_FACTOR = 2
UNTOLD = -1e4  # added to the score of a token that is none; finite: a product without texts gives no NaN


class WordFusion(nn.Module):
    """The photo's vector looks at the words and is moved by what they say; at first it stays where it is."""

    def __init__(self, dim: int, width: int, heads: int, temperature: float) -> None:
        """`dim`: D, a multiple of `heads`; `width`: W; `temperature`: of the contrastive loss."""
        super().__init__()
        self.heads, self.temperature = heads, temperature
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(width, dim), nn.Linear(width, dim)
        self.hidden = nn.Sequential(nn.Linear(2 * dim, HIDDEN_FACTOR * dim), nn.GELU(), nn.Linear(HIDDEN_FACTOR * dim, dim))
        last = self.hidden[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, photo_UD: Tensor, words_UTW: Tensor, told_UT: Tensor) -> Tensor:
        """(U, D) unit vectors of products; of those without a word, their photo's."""
        num, dim = photo_UD.shape
        scaled_UD = photo_UD * dim**0.5  # numbers of size 1, as layers are made for
        query_UH1D = self.query(scaled_UD).view(num, 1, self.heads, -1).transpose(1, 2)
        key_UHTD, value_UHTD = (
            part(words_UTW).view(num, -1, self.heads, dim // self.heads).transpose(1, 2) for part in (self.key, self.value)
        )
        mask_U11T = torch.where(told_UT, 0.0, UNTOLD)[:, None, None]
        said_UD = functional.scaled_dot_product_attention(query_UH1D, key_UHTD, value_UHTD, attn_mask=mask_U11T).reshape(num, dim)
        moved_UD = self.hidden(torch.cat([scaled_UD, said_UD], 1)) * told_UT.any(1, keepdim=True)
        return functional.normalize(photo_UD + moved_UD)

    def loss(self, unit_ND: Tensor, products_N: Tensor, by_users_N: Tensor, text: TextTask, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of each user photo's product among the batch's products with a catalog photo in it."""
        shown = {product: row for row, product in enumerate(products_N.tolist()) if not by_users_N[row]}
        place = {product: column for column, product in enumerate(shown)}
        asked = [row for row, product in enumerate(products_N.tolist()) if by_users_N[row] and product in place]
        if not asked:
            return unit_ND.sum() * 0
        texts = [text.shortened(of, rng) if (of := text.texts[product]) else "" for product in shown]
        with torch.no_grad():
            words_UTW, told_UT = text.net.words(text.tokens(texts, unit_ND.device))
        fused_UD = self(unit_ND[list(shown.values())].detach(), words_UTW, told_UT)
        right = torch.tensor([place[int(products_N[row])] for row in asked], device=unit_ND.device)
        return functional.cross_entropy(unit_ND[asked].detach() @ fused_UD.T / self.temperature, right)

    @torch.inference_mode()
    def fused(self, photo_ND: Tensor, texts: list[str], text: TextTask, device: torch.device) -> Tensor:
        """(N, D) unit vectors on the CPU, of photos and one text each ("" = none)."""
        words_NTW, told_NT = text.net.words(text.tokens(texts, device))
        fused_ND: Tensor = self(photo_ND.to(device), words_NTW, told_NT)
        return fused_ND.cpu()
