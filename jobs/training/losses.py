"""Metric-learning losses by name, from pytorch-metric-learning, at the settings of their papers or measured ones."""

from collections.abc import Callable, Mapping, Sequence

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

ABSENT = -1  # column of an attribute that a product lacks
NEVER = -1e4  # an offset, after which an exponential is 0
ATTRIBUTE_SCALE = 16.0  # unit embeddings are short: logits of cosine size learn slowly


class MinedLoss(nn.Module):
    """A pair or triplet loss on the hard pairs that a miner picks from the batch."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings_ND: Tensor, products_N: Tensor) -> Tensor:
        loss: Tensor = self.loss(embeddings_ND, products_N, self.miner(embeddings_ND, products_N))
        return loss


class OffsetCosFace(losses.CosFaceLoss):  # type: ignore[misc]
    """CosFace whose cosines may be moved before the softmax, as a prior does (arXiv:2007.07314)."""

    offsets_NP: Tensor | None = None

    def forward(self, embeddings_ND: Tensor, products_N: Tensor, offsets_NP: Tensor | None = None) -> Tensor:
        """`offsets_NP` are added to the photos' cosines with the products' proxies; NEVER = the product does not count."""
        self.offsets_NP = offsets_NP
        loss: Tensor = super().forward(embeddings_ND, products_N)
        return loss

    def scale_logits(self, logits_NP: Tensor, *_: object) -> Tensor:
        scaled_NP: Tensor = super().scale_logits(logits_NP if self.offsets_NP is None else logits_NP + self.offsets_NP)
        return scaled_NP


def new_product_offsets(by_users_N: Tensor, new_P: Tensor, margin: float) -> Tensor:
    """(N, P) offsets for products that no user photo shows: user photos are not pushed away from them, and what is made of
    catalog photos has to look like them by `margin` more than like the others.
    """
    away_NP = torch.where(by_users_N[:, None] & new_P, NEVER, 0.0)
    return away_NP + margin * (~by_users_N[:, None] & ~new_P)


# name -> loss of (number of training products, embedding width). Called as loss(embeddings (N, D) float, products (N,) int).
LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    # arXiv:1811.12649: softmax over one learned proxy a product; temperature 0.05 is theirs.
    "normalized_softmax": lambda num, dim: losses.NormalizedSoftmaxLoss(num, dim, temperature=0.05),
    # arXiv:1801.07698: 28.6 degrees of margin, scale 64 in the paper; 32 trains steadily from random weights.
    "arcface": lambda num, dim: losses.ArcFaceLoss(num, dim, margin=15.0, scale=32),
    # arXiv:1801.09414: margin 0.35, scale 64 in the paper; 0.2 and 16 measured for few photos a product.
    "cosface": lambda num, dim: OffsetCosFace(num, dim, margin=0.2, scale=16),
    # arXiv:2003.13911: alpha 32, margin 0.1.
    "proxy_anchor": lambda num, dim: losses.ProxyAnchorLoss(num, dim, margin=0.1, alpha=32),
    # arXiv:1904.06627: alpha 2, beta 50, base 0.5 (0.5 to 1 in the paper), miner epsilon 0.1.
    "multi_similarity": lambda num, dim: MinedLoss(losses.MultiSimilarityLoss(2, 50, 0.5), miners.MultiSimilarityMiner(0.1)),
    # arXiv:1503.03832: semi-hard triplets, margin 0.2.
    "triplet": lambda num, dim: MinedLoss(losses.TripletMarginLoss(0.2), miners.TripletMarginMiner(0.2, "semihard")),
    # What mining is held against: eight triplets an anchor, their negatives drawn by chance.
    "triplet_random": lambda num, dim: losses.TripletMarginLoss(0.2, triplets_per_anchor=8),
    # arXiv:1703.07737: the hardest positive and negative of each anchor.
    "triplet_hard": lambda num, dim: MinedLoss(losses.TripletMarginLoss(0.2), miners.BatchHardMiner()),
    # arXiv:2004.11362: temperature 0.1.
    "supervised_contrastive": lambda num, dim: losses.SupConLoss(temperature=0.1),
}


def build_loss(name: str, num_products: int, dim: int) -> nn.Module:
    """The loss called `name`; those with proxies have parameters to train. Raises ValueError for an unknown name."""
    if name not in LOSSES:
        raise ValueError(f"loss={name!r}: allowed are {', '.join(LOSSES)}")
    return LOSSES[name](num_products, dim)


class AttributeLoss(nn.Module):
    """Mean cross-entropy of what a product is made of, read off its embedding: colours, pattern, logo, texture, shape.

    From random weights these words teach a small network to look within its first epochs, where product identity alone
    (thousands of classes, a few photos each) barely moves it. An attribute that a product lacks does not count. All
    softmaxes are taken in one go: V logits, of which each attribute A owns some columns.
    """

    def __init__(self, words: Sequence[Mapping[str, str]], dim: int) -> None:
        """`words`: attribute -> word, for each product."""
        super().__init__()
        values = sorted({pair for entry in words for pair in entry.items()})
        column_of = {pair: column for column, pair in enumerate(values)}
        names = sorted({name for name, _ in values})
        rows = [[column_of[name, entry[name]] if name in entry else ABSENT for name in names] for entry in words]
        self.head = nn.Linear(dim, len(values))
        self.register_buffer("columns_PA", torch.tensor(rows), persistent=False)  # products x attributes: the right logit
        self.register_buffer("attribute_V", torch.tensor([names.index(name) for name, _ in values]), persistent=False)

    def forward(self, embeddings_ND: Tensor, products_N: Tensor) -> Tensor:
        columns_NA = self.get_buffer("columns_PA")[products_N]
        logits_NV = self.head(embeddings_ND * ATTRIBUTE_SCALE)
        logits_NV = logits_NV - logits_NV.detach().amax(1, keepdim=True)
        sums_NA = torch.zeros_like(columns_NA, dtype=logits_NV.dtype).index_add(
            1, self.get_buffer("attribute_V"), logits_NV.exp()
        )
        losses_NA = sums_NA.log() - logits_NV.gather(1, columns_NA.clamp(min=0))
        mean: Tensor = losses_NA[columns_NA != ABSENT].mean()
        return mean
