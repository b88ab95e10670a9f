"""Training by link prediction: a linked target against others, half of them of the same kind (hard), softmax over all.

The cost of an epoch is linear in the edges: a batch has a fixed number of edges, negatives and drawn neighbours.
Letters: B edges of a batch, M negatives, N nodes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from jobs.config import TrainLooksConfig
from jobs.looks.content import Content
from jobs.looks.graph import LookGraph, Neighbours
from jobs.looks.models import Mlp, PairNet

WARMUP_FRAC = 0.1001  # of all steps; 0.1 would be one step of ten, whose length less one torch divides by


@dataclass(frozen=True)
class Batch:
    """Edges to be predicted, and the targets they are held against."""

    sources_B: np.ndarray
    targets_B: np.ndarray
    negatives_M: np.ndarray
    known_BM: np.ndarray  # bool: a negative that is linked after all


class EdgeBatches:
    """Every edge once an epoch, in another order each time."""

    def __init__(self, graph: LookGraph, kinds_N: np.ndarray, config: TrainLooksConfig) -> None:
        self.graph, self.kinds_N, self.config = graph, kinds_N, config
        self.rng = np.random.default_rng(config.seed)
        self.by_kind = Neighbours.of(int(kinds_N.max(initial=0)) + 1, kinds_N, np.arange(len(kinds_N)))

    def epoch(self) -> "list[np.ndarray]":
        """Edge numbers of each batch."""
        order = self.rng.permutation(self.graph.num_edges)
        return [order[start : start + self.config.batch_edges] for start in range(0, len(order), self.config.batch_edges)]

    def batch(self, edges_B: np.ndarray) -> Batch:
        """With negatives: half of any kind, half of the kinds of this batch's targets. Both ascend: so looked up quickest."""
        edges_B = np.sort(edges_B)
        sources_B, targets_B = self.graph.sources_E[edges_B], self.graph.targets_E[edges_B]
        half = self.config.negatives // 2
        anything = self.rng.integers(0, self.graph.num_nodes, half)
        alike = self.by_kind.sample(self.kinds_N[self.rng.choice(targets_B, half)], 1, self.rng)[:, 0]
        negatives_M = np.sort(np.concatenate([anything, alike]))
        known_BM = self.graph.holds(sources_B[:, None], negatives_M[None]) | (sources_B[:, None] == negatives_M[None])
        return Batch(sources_B, targets_B, negatives_M, known_BM)


def link_loss(positives_B: torch.Tensor, negatives_BM: torch.Tensor, known_BM: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the linked target among the negatives that are not linked."""
    against_BM = negatives_BM.masked_fill(known_BM, float("-inf"))
    return (torch.logsumexp(torch.cat([positives_B[:, None], against_BM], dim=1), dim=1) - positives_B).mean()


def train(
    graph: LookGraph, content: Content, config: TrainLooksConfig, net: torch.nn.Module, loss_of: Callable[[Batch], torch.Tensor]
) -> None:
    """`config.epochs` over the edges; AdamW, cosine to zero. Half-steps of an empty graph are none."""
    _, kinds_N = np.unique(np.array(content.kinds), return_inverse=True)
    batches = EdgeBatches(graph, kinds_N, config)
    epochs = [batches.epoch() for _ in range(config.epochs)]
    steps = sum(len(epoch) for epoch in epochs)
    if not steps:
        return
    optimizer = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=WARMUP_FRAC)
    net.train()
    for epoch in epochs:
        for edges_B in epoch:
            optimizer.zero_grad()
            loss_of(batches.batch(edges_B)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def train_mlp(content: Content, graph: LookGraph, config: TrainLooksConfig) -> Mlp:
    """The plain network on pairs."""
    torch.manual_seed(config.seed)
    features_NF = torch.from_numpy(content.features_NF)
    net = PairNet(features_NF.shape[1], config.hidden)

    def loss_of(batch: Batch) -> torch.Tensor:
        sources_BF = dropped(features_NF[torch.from_numpy(batch.sources_B)], config)
        targets_BF, against_MF = (
            dropped(features_NF[torch.from_numpy(nodes)], config) for nodes in (batch.targets_B, batch.negatives_M)
        )
        positives_B, scores_BM = net.of_pairs(sources_BF, targets_BF), net(sources_BF, against_MF)
        return link_loss(positives_B, scores_BM, torch.from_numpy(batch.known_BM))

    train(graph, content, config, net, loss_of)
    return Mlp(net, content)


def dropped(values: torch.Tensor, config: TrainLooksConfig) -> torch.Tensor:
    """Some of them zero, so that a small graph is not learned by heart."""
    return torch.nn.functional.dropout(values, config.dropout)
