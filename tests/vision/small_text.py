"""A text encoder with random weights and a tokenizer of a few words, made in no time."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from serve.vision.spec import TextConfig
from serve.vision.text import UNKNOWN
from serve.vision.text_net import TextNet

TEXTS = ["red shoe with a white sole", "blue hat", "a red hat with blue stripes and a very long description behind it"]


def make_text_part(folder: Path, dim: int) -> TextConfig:
    """A transformer in `folder` whose vectors are `dim` wide, and a tokenizer of the words above."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[PAD]", UNKNOWN]))
    tokenizer.save(str(folder / "words.json"))
    config = TextConfig(kind="transformer", vocabulary=tokenizer.get_vocab_size(), max_tokens=8, width=32, layers=2, heads=2)
    torch.manual_seed(0)
    save_file(TextNet(config, dim).state_dict(), folder / "words.safetensors")
    return config.model_copy(update={"weights": str(folder / "words.safetensors"), "tokenizer": str(folder / "words.json")})
