"""Losses that make the vectors of catalog and user photos look alike: whatever they show, or product by product.

Letters: N crops, P products, D embedding dimensions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.training.crops import USER

HIDDEN = 64  # of the domain critic
MEMORY = 0.9  # of a product's mean query, for each batch that shows it
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, in mean squared distances: arXiv:1502.02791 takes such a range


def build_adaptation(name: str, dim: int) -> nn.Module | None:
    """The loss of `TrainEncoderConfig.adaptation`; None for "none". Called as loss(embeddings (N, D), domains (N,))."""
    if name == "none":
        return None
    return DomainCritic(dim) if name == "adversarial" else MomentDistance()


class DomainCritic(nn.Module):
    """Domain-adversarial training (arXiv:1505.07818): a critic tells the domains apart, the encoder learns to deceive it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, embeddings_ND: Tensor, domains_N: Tensor) -> Tensor:
        logits_N = self.critic(Reversed.apply(embeddings_ND)).squeeze(1)
        return functional.binary_cross_entropy_with_logits(logits_N, (domains_N == USER).to(logits_N.dtype))


class Reversed(torch.autograd.Function):
    """The identity, with its gradient turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class MomentDistance(nn.Module):
    """Maximum mean discrepancy between the domains with Gaussian kernels (arXiv:1502.02791); 0 where one domain is missing."""

    def forward(self, embeddings_ND: Tensor, domains_N: Tensor) -> Tensor:
        user, shop = embeddings_ND[domains_N == USER], embeddings_ND[domains_N != USER]
        if len(user) < 2 or len(shop) < 2:
            return embeddings_ND.sum() * 0
        points = torch.cat([user, shop])
        squared = torch.cdist(points, points).square()
        scale = squared.detach().mean().clamp(min=1e-6)
        kernel = torch.stack([torch.exp(-squared / (scale * width)) for width in BANDWIDTHS]).mean(0)
        num = len(user)
        return kernel[:num, :num].mean() + kernel[num:, num:].mean() - 2 * kernel[:num, num:].mean()


class CatalogPull(nn.Module):
    """Draws catalog photos, as the index will see them, to the mean of what shows their product as users do.

    A metric loss sees photos turned, cut and hidden; what is found later is the one vector of the photo as it is.
    """

    means_PD: Tensor

    def __init__(self, num_products: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("means_PD", torch.zeros(num_products, dim))  # running; zeros: not seen yet

    @torch.no_grad()
    def update(self, queries_ND: Tensor, products_N: Tensor) -> None:
        """Unit vectors of users' photos, or of what is generated like them."""
        counts_P = torch.bincount(products_N, minlength=len(self.means_PD))
        sums_PD = torch.zeros_like(self.means_PD).index_add(0, products_N, queries_ND)
        seen_P, new_P = counts_P > 0, (self.means_PD == 0).all(1)
        memory_P1 = torch.where(new_P, 0.0, MEMORY)[seen_P, None]
        self.means_PD[seen_P] = memory_P1 * self.means_PD[seen_P] + (1 - memory_P1) * sums_PD[seen_P] / counts_P[seen_P, None]

    def forward(self, photos_ND: Tensor, products_N: Tensor) -> Tensor:
        """1 - cosine of each photo with its product's mean, averaged; products without one do not count."""
        cosines_N = (photos_ND * functional.normalize(self.means_PD[products_N])).sum(1)
        known_N = (self.means_PD[products_N] != 0).any(1)
        return ((1 - cosines_N) * known_N).sum() / known_N.sum().clamp(min=1)
