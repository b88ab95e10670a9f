"""Models of "what goes with this", the plain ones; the graph network is in graph_net. Each scores every target for some sources.

From the simplest to the most involved: popularity, cooccurrence, nearest, mlp, graph (GraphSAGE).
Letters: N nodes, B sources, M targets, F features, K hidden.
"""

from typing import Protocol

import numpy as np
import torch
from torch import nn

from jobs.looks.content import Content
from jobs.looks.graph import LookGraph

ORDER = ("popularity", "cooccurrence", "nearest", "mlp", "graph")  # the simplest first


class LookModel(Protocol):
    """Scores every node as a target of some sources; only the order of one row means something."""

    def scores(self, sources_B: np.ndarray) -> np.ndarray:
        """(B, N) float."""
        ...


class Popularity:
    """How often a target is linked at all."""

    def __init__(self, content: Content, graph: LookGraph) -> None:
        self.counts_N = np.bincount(graph.targets_E, minlength=content.num_nodes).astype(np.float64)

    def scores(self, sources_B: np.ndarray) -> np.ndarray:
        return np.tile(self.counts_N, (len(sources_B), 1))


class Cooccurrence:
    """How often a target is linked from products of the source's kind; among equals the popular ones.

    Links of the source itself say what else its targets are linked beside: a product that has links is known by them.
    """

    def __init__(self, content: Content, graph: LookGraph) -> None:
        self.popularity = Popularity(content, graph)
        names, self.kind_N = np.unique(np.array(content.kinds), return_inverse=True)
        self.counts_kN = np.zeros((len(names), content.num_nodes))
        np.add.at(self.counts_kN, (self.kind_N[graph.sources_E], graph.targets_E), 1.0)
        self.sizes_k = np.maximum(np.bincount(self.kind_N, minlength=len(names)), 1)

    def scores(self, sources_B: np.ndarray) -> np.ndarray:
        by_kind = (self.counts_kN / self.sizes_k[:, None])[self.kind_N[sources_B]]
        return np.asarray(by_kind + 1e-6 * self.popularity.counts_N)


class Nearest:
    """Cosine of the pictures."""

    def __init__(self, content: Content, _: LookGraph) -> None:
        self.embeddings_ND = content.embeddings_ND

    def scores(self, sources_B: np.ndarray) -> np.ndarray:
        return np.asarray(self.embeddings_ND[sources_B] @ self.embeddings_ND.T)


class PairNet(nn.Module):
    """A plain network over the features of a pair: the first layer of each side apart, so that B x M pairs stay cheap."""

    def __init__(self, num_features: int, hidden: int) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(num_features, hidden), nn.Linear(num_features, hidden)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, sources_BF: torch.Tensor, targets_MF: torch.Tensor) -> torch.Tensor:
        """(B, M) scores."""
        pairs_BMK = self.source(sources_BF)[:, None] + self.target(targets_MF)[None]
        scores_BM: torch.Tensor = self.head(pairs_BMK).squeeze(-1)
        return scores_BM

    def of_pairs(self, sources_BF: torch.Tensor, targets_BF: torch.Tensor) -> torch.Tensor:
        """(B,) scores of each source and its own target."""
        scores_B: torch.Tensor = self.head(self.source(sources_BF) + self.target(targets_BF)).squeeze(-1)
        return scores_B


class Mlp:
    """A trained PairNet."""

    def __init__(self, net: PairNet, content: Content) -> None:
        self.net, self.features_NF = net.eval(), torch.from_numpy(content.features_NF)

    @torch.inference_mode()
    def scores(self, sources_B: np.ndarray) -> np.ndarray:
        return np.concatenate([self.net(self.features_NF[[source]], self.features_NF).numpy() for source in sources_B])
