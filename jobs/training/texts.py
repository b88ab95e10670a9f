"""The text side of the encoder's training: a tokenizer of the catalog's own words, and the contrastive loss.

Letters: N crops, U distinct products among them, T tokens, D embedding dimensions.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

from jobs.config import TrainTextConfig
from serve.vision.spec import TextConfig
from serve.vision.text import UNKNOWN, Tokenize, file_tokenizer
from serve.vision.text_net import TextNet

PAD = "[PAD]"
MIN_FREQUENCY = 2  # a piece of a word that is seen once teaches nothing


def train_tokenizer(texts: Sequence[str], config: TrainTextConfig, path: Path) -> TextConfig:
    """Writes a WordPiece tokenizer of `texts` to `path`; the text encoder's settings with its real vocabulary.

    Raises ValueError where there is no text.
    """
    told = [text for text in texts if text.strip()]
    if not told:
        raise ValueError("train_encoder.text.weight is set, but no product has a title or a description; set it to 0")
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocabulary, min_frequency=MIN_FREQUENCY, special_tokens=[PAD, UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(told, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return TextConfig(
        kind="transformer",
        tokenizer=path.name,
        vocabulary=tokenizer.get_vocab_size(),
        max_tokens=config.max_tokens,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
    )


class TextTask(nn.Module):
    """A TextNet and what it learns from: each product's texts, some words left out."""

    def __init__(
        self, texts: Sequence[Sequence[str]], spec: TextConfig, tokenizer: Path, config: TrainTextConfig, dim: int
    ) -> None:
        """`texts`: of each training product, its title and description."""
        super().__init__()
        self.config = config
        self.texts = [[text for text in of_product if text.strip()] for of_product in texts]
        self.net = TextNet(spec, dim)
        self.tokenize: Tokenize = file_tokenizer(tokenizer, spec.max_tokens)

    def loss(self, image_ND: Tensor, products_N: Tensor, rng: np.random.Generator) -> Tensor:
        """Contrastive both ways: a text's photos are all crops of its product (multi-positive InfoNCE, arXiv:2004.11362)."""
        told = [product for product in sorted(set(products_N.tolist())) if self.texts[product]]
        if not told:
            return image_ND.sum() * 0
        words = [self.shortened(self.texts[product], rng) for product in told]
        text_UD = self.net(self.tokens(words, image_ND.device))[0]
        told_U = torch.tensor(told, device=image_ND.device)
        same_NU = (products_N.to(image_ND.device)[:, None] == told_U).float()
        same_NU, image_ND = same_NU[same_NU.any(1)], image_ND[same_NU.any(1)]
        logits_NU = image_ND @ text_UD.T / self.config.temperature
        by_photo = -(logits_NU.log_softmax(1) * same_NU).sum(1).mean()
        by_text = -((logits_NU.log_softmax(0) * same_NU).sum(0) / same_NU.sum(0)).mean()
        mean: Tensor = (by_photo + by_text) / 2
        return mean

    def shortened(self, texts: Sequence[str], rng: np.random.Generator) -> str:
        """One of a product's texts, or all of them, without a few of its words."""
        text = " ".join(texts) if rng.random() < 0.25 else texts[int(rng.integers(len(texts)))]
        words = text.split()
        kept = [word for word in words if rng.random() >= self.config.drop_frac]
        return " ".join(kept or words)

    def tokens(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """(N, T) token ids, as `net` takes them."""
        return torch.from_numpy(self.tokenize(texts)).to(device)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """(N, D) unit embeddings on the CPU."""
        return functional.normalize(self.net(self.tokens(texts, device))[0].cpu())
