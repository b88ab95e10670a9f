"""Adaptation brings two domains together: the critic's gradient comes back turned round, moments draw near."""

import pytest
import torch
from torch.nn import functional

from jobs.training.adaptation import MEMORY, CatalogPull, DomainCritic, build_adaptation
from jobs.training.crops import SHOP, USER

DOMAINS = torch.tensor([SHOP] * 32 + [USER] * 32)


def two_domains() -> torch.Tensor:
    torch.manual_seed(0)
    points = torch.randn(64, 8) * 0.3
    points[32:] += 1.0
    return points.requires_grad_()


def gap(points: torch.Tensor) -> float:
    return float((points[:32].mean(0) - points[32:].mean(0)).norm())


def test_the_encoder_deceives_the_critic_while_the_critic_learns() -> None:
    points, critic = two_domains(), build_adaptation("adversarial", 8)
    assert isinstance(critic, DomainCritic)
    critic(points, DOMAINS).backward()
    turned, learned = points.grad, critic.critic[0].weight.grad
    again = points.detach().requires_grad_()
    critic.zero_grad()
    functional.binary_cross_entropy_with_logits(critic.critic(again).squeeze(1), (DOMAINS == USER).float()).backward()
    assert turned is not None and again.grad is not None and learned is not None
    torch.testing.assert_close(turned, -again.grad)
    torch.testing.assert_close(learned, critic.critic[0].weight.grad)


def test_moments_draw_near() -> None:
    points, loss_of = two_domains(), build_adaptation("moments", 8)
    assert loss_of is not None
    before = gap(points.detach())
    optimizer = torch.optim.Adam([points], lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        loss_of(points, DOMAINS).backward()
        optimizer.step()
    assert gap(points.detach()) < 0.5 * before


@pytest.mark.parametrize("domain", [SHOP, USER])
def test_a_batch_of_one_domain_says_nothing(domain: int) -> None:
    loss_of = build_adaptation("moments", 8)
    assert loss_of is not None
    assert float(loss_of(torch.randn(4, 8), torch.full((4,), domain))) == 0
    assert build_adaptation("none", 8) is None


def test_catalog_photos_are_drawn_to_the_running_mean_of_their_products_queries() -> None:
    pull = CatalogPull(3, 2)
    photos = functional.normalize(torch.tensor([[1.0, 0.2], [0.3, 1.0], [1.0, 1.0]])).requires_grad_()
    assert float(pull(photos, torch.tensor([0, 1, 2])).detach()) == 0, "no query is known yet"
    pull.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(pull.means_PD, torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.0, 0.0]]))
    pull.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    torch.testing.assert_close(pull.means_PD[1], torch.tensor([1 - MEMORY, MEMORY]))
    torch.testing.assert_close(pull.means_PD[0], torch.tensor([0.5, 0.5]))  # it was not in that batch
    loss = pull(photos, torch.tensor([0, 1, 2]))
    wanted = functional.normalize(pull.means_PD[:2])
    assert float(loss.detach()) == pytest.approx(float(1 - (photos[:2] * wanted).sum(1).mean().detach()), abs=1e-6)
    loss.backward()
    assert photos.grad is not None and (photos.grad[2] == 0).all(), "product 2 has no query"
    assert ((-photos.grad[:2]) * wanted).sum(1).gt(0).all(), "a step down leads towards the mean"
