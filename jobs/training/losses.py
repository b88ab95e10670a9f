"""Metric-learning losses by name, from pytorch-metric-learning, at the settings of their papers or measured ones."""

from collections.abc import Callable, Sequence

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.nn import functional

from jobs.render.products import RenderedProduct

IGNORED = -100  # cross_entropy's own value for "no label"
ATTRIBUTE_SCALE = 16.0  # unit embeddings are short: logits of cosine size learn slowly


class MinedLoss(nn.Module):
    """A pair or triplet loss on the hard pairs that a miner picks from the batch."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings_ND: Tensor, products_N: Tensor) -> Tensor:
        loss: Tensor = self.loss(embeddings_ND, products_N, self.miner(embeddings_ND, products_N))
        return loss


# name -> loss of (number of training products, embedding width). Called as loss(embeddings (N, D) float, products (N,) int).
LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    # arXiv:1811.12649: softmax over one learned proxy a product; temperature 0.05 is theirs.
    "normalized_softmax": lambda num, dim: losses.NormalizedSoftmaxLoss(num, dim, temperature=0.05),
    # arXiv:1801.07698: 28.6 degrees of margin, scale 64 in the paper; 32 trains steadily from random weights.
    "arcface": lambda num, dim: losses.ArcFaceLoss(num, dim, margin=15.0, scale=32),
    # arXiv:2003.13911: alpha 32, margin 0.1.
    "proxy_anchor": lambda num, dim: losses.ProxyAnchorLoss(num, dim, margin=0.1, alpha=32),
    # arXiv:1904.06627: alpha 2, beta 50, base 0.5 (0.5 to 1 in the paper), miner epsilon 0.1.
    "multi_similarity": lambda num, dim: MinedLoss(losses.MultiSimilarityLoss(2, 50, 0.5), miners.MultiSimilarityMiner(0.1)),
    # arXiv:1503.03832: semi-hard triplets, margin 0.2.
    "triplet": lambda num, dim: MinedLoss(losses.TripletMarginLoss(0.2), miners.TripletMarginMiner(0.2, "semihard")),
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
    (thousands of classes, a few photos each) barely moves it. An attribute that a product lacks does not count.
    """

    def __init__(self, products: Sequence[RenderedProduct], dim: int) -> None:
        super().__init__()
        words = [attributes_of(product) for product in products]
        self.names = sorted({name for entry in words for name in entry})
        values = {name: sorted({entry[name] for entry in words if name in entry}) for name in self.names}
        self.sizes = [len(values[name]) for name in self.names]
        self.head = nn.Linear(dim, sum(self.sizes))
        rows = [[values[name].index(entry[name]) if name in entry else IGNORED for name in self.names] for entry in words]
        self.register_buffer("labels_PA", torch.tensor(rows), persistent=False)  # products x attributes

    def forward(self, embeddings_ND: Tensor, products_N: Tensor) -> Tensor:
        labels_NA = self.get_buffer("labels_PA")[products_N]
        logits = self.head(embeddings_ND * ATTRIBUTE_SCALE).split(self.sizes, dim=1)
        summed = [
            functional.cross_entropy(part, labels_NA[:, column], ignore_index=IGNORED, reduction="sum")
            for column, part in enumerate(logits)
        ]
        return torch.stack(summed).sum() / (labels_NA != IGNORED).sum()


def attributes_of(product: RenderedProduct) -> dict[str, str]:
    """Attribute -> word, of everything a photo of the product shows."""
    words = {name: getattr(product, name) for name in ("main_colour", "accent_colour", "pattern", "texture")}
    words |= {f"{product.spec.leaf} {name}": word for name, word in product.shape}
    if product.pattern != "plain":
        words |= {"pattern_size": product.pattern_size, "pattern_turn": product.pattern_turn}
    if product.logo:
        words |= {"logo": product.logo, "logo_colour": product.logo_colour}
    return words
