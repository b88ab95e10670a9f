"""Metric losses by name, and the loss on what a product is made of."""

import pytest
import torch

from jobs.render.products import make_products
from jobs.training.generated import attributes_of
from jobs.training.losses import LOSSES, NEVER, AttributeLoss, build_loss, new_product_offsets


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_pulls_a_product_together(name: str) -> None:
    torch.manual_seed(0)
    products = torch.arange(6).repeat_interleave(4)
    points = torch.randn(24, 16, requires_grad=True)
    loss_of = build_loss(name, 6, 16)
    optimizer = torch.optim.Adam([points, *loss_of.parameters()], lr=0.05)
    values = []
    for _ in range(40):
        loss = loss_of(torch.nn.functional.normalize(points), products)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert all(torch.isfinite(torch.tensor(values)))
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


def test_user_photos_are_not_pushed_away_from_new_products_and_those_win_by_a_margin() -> None:
    torch.manual_seed(0)
    loss_of = build_loss("cosface", 3, 4)
    points = torch.nn.functional.normalize(torch.randn(2, 4))
    offsets = new_product_offsets(torch.tensor([True, False]), torch.tensor([False, False, True]), 0.1)
    torch.testing.assert_close(offsets, torch.tensor([[0, 0, NEVER], [0.1, 0.1, 0]]))
    products = torch.tensor([0, 2])
    assert loss_of(points, products, torch.zeros(2, 3)) == loss_of(points, products)
    assert loss_of(points[1:], products[1:], offsets[1:]) > loss_of(points[1:], products[1:])
    (proxies,) = loss_of.parameters()
    loss_of(points[:1], products[:1], offsets[:1]).backward()
    assert proxies.grad is not None
    pushed = proxies.grad.abs().sum(0)  # proxies are columns
    assert pushed[0] > 0 and pushed[1] > 0 and pushed[2] == 0


def test_unknown_loss_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="loss='center': allowed are normalized_softmax, arcface"):
        build_loss("center", 6, 16)


def test_attributes_are_what_a_photo_shows() -> None:
    products = make_products(40, 3)
    plain = next(product for product in products if product.pattern == "plain" and product.logo is None)
    words = attributes_of(plain)
    assert words["main_colour"] == plain.main_colour
    assert "pattern_size" not in words
    assert "logo" not in words
    assert all(f"{plain.spec.leaf} {name}" in words for name, _ in plain.shape)


def test_attribute_loss_learns_and_skips_what_is_missing() -> None:
    torch.manual_seed(0)
    products = make_products(12, 3)
    loss_of = AttributeLoss([attributes_of(product) for product in products], 16)
    points = torch.randn(12, 16, requires_grad=True)
    optimizer = torch.optim.Adam([points, *loss_of.parameters()], lr=0.05)
    values = []
    for _ in range(30):
        loss = loss_of(torch.nn.functional.normalize(points), torch.arange(12))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]
    assert set(loss_of.state_dict()) == {"head.weight", "head.bias"}


def test_attribute_loss_is_the_mean_of_each_attribute_s_cross_entropy() -> None:
    products = make_products(5, 3)
    loss_of = AttributeLoss([attributes_of(product) for product in products], 8)
    points = torch.nn.functional.normalize(torch.randn(5, 8))
    values = sorted({pair for product in products for pair in attributes_of(product).items()})
    logits = loss_of.head(points * 16)
    expected = []
    for row, product in enumerate(products):
        for name, word in attributes_of(product).items():
            columns = [column for column, (other, _) in enumerate(values) if other == name]
            target = torch.tensor(columns.index(values.index((name, word))))
            expected.append(torch.nn.functional.cross_entropy(logits[row, columns], target))
    torch.testing.assert_close(loss_of(points, torch.arange(5)), torch.stack(expected).mean())
