"""Products of photo and words by attention: at first the photo, without words the photo, and what the words tell is learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from jobs.config import TrainEncoderConfig, TrainTextConfig
from jobs.training.texts import TextTask, train_tokenizer
from jobs.training.word_fusion import WordFusion

DIM, HEADS = 16, 4
COLOURS = ("red", "blue", "green", "grey", "black", "white", "brown", "pink")


@pytest.fixture
def text(tmp_path: Path) -> TextTask:
    """A text encoder with random weights over products that are called by their colour; the last one has no text."""
    torch.manual_seed(3)
    config = TrainTextConfig(weight=1.0, vocabulary=64, max_tokens=8, width=32, layers=1, heads=2, drop_frac=0.0)
    texts = [[f"a {colour} hat"] for colour in COLOURS]
    spec = train_tokenizer([words for [words] in texts], config, tmp_path / "tokenizer.json")
    return TextTask([*texts, []], spec, tmp_path / "tokenizer.json", config, DIM)


def test_it_begins_as_the_photo_and_a_product_without_words_stays_it(text: TextTask) -> None:
    fusion = WordFusion(DIM, 32, HEADS, 0.07)
    photo = functional.normalize(torch.randn(2, DIM))
    told = fusion.fused(photo, ["a red hat", ""], text, torch.device("cpu"))
    torch.testing.assert_close(told, photo)
    torch.nn.init.normal_(fusion.hidden[-1].weight)
    told = fusion.fused(photo, ["a red hat", ""], text, torch.device("cpu"))
    assert not torch.allclose(told[0], photo[0], atol=0.1)
    torch.testing.assert_close(told[1], photo[1])
    torch.testing.assert_close(fusion.fused(photo, ["", ""], text, torch.device("cpu")), photo)


def test_words_that_tell_alike_photos_apart_are_learned_and_the_encoder_is_left_alone(text: TextTask) -> None:
    """All catalog photos have one vector; users' photos have their product's own: only the words can lead there."""
    rng = np.random.default_rng(5)
    num = len(COLOURS)
    alike_PD = functional.normalize(torch.ones(num, DIM))
    own_PD = functional.normalize(torch.randn(num, DIM, generator=torch.Generator().manual_seed(1)))
    unit_ND = torch.cat([alike_PD, own_PD]).requires_grad_()
    products_N, by_users_N = torch.arange(num).repeat(2), torch.arange(2 * num) >= num
    fusion = WordFusion(DIM, 32, HEADS, 0.07)
    optimizer = torch.optim.Adam(fusion.parameters(), 3e-3)
    losses = []
    for _ in range(80):
        loss = fusion.loss(unit_ND, products_N, by_users_N, text, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(num), abs=0.01) and losses[-1] < 0.2
    assert unit_ND.grad is None and all(parameter.grad is None for parameter in text.parameters())
    fused_PD = fusion.fused(alike_PD, [f"a {colour} hat" for colour in COLOURS], text, torch.device("cpu"))
    assert ((own_PD @ fused_PD.T).argmax(1) == torch.arange(num)).all()


def test_a_batch_without_a_pair_of_user_and_catalog_photo_teaches_nothing(text: TextTask) -> None:
    unit_ND = functional.normalize(torch.randn(2, DIM)).requires_grad_()
    loss = WordFusion(DIM, 32, HEADS, 0.07).loss(
        unit_ND, torch.tensor([0, 1]), torch.tensor([True, False]), text, np.random.default_rng(0)
    )
    loss.backward()
    assert float(loss.detach()) == 0


def test_settings_that_cannot_be_fused_say_so() -> None:
    with pytest.raises(ValueError, match="needs a text encoder: set weight"):
        TrainTextConfig(fusion_weight=1.0)
    with pytest.raises(ValueError, match=r"embedding_dim=30: text\.fusion_weight needs a multiple of heads=4"):
        TrainEncoderConfig(embedding_dim=30, text=TrainTextConfig(weight=1.0, fusion_weight=1.0))
