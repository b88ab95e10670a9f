"""GraphSAGE for looks: its nets, its training, its vectors. Importing it costs 12 s of CPU, which torch_geometric takes.

Letters: N nodes, B sources, M targets, F features, K hidden, A fanout.
"""

import numpy as np
import torch
from torch import nn
from torch_geometric.nn import SAGEConv

from jobs.config import TrainLooksConfig
from jobs.looks.content import Content
from jobs.looks.graph import LookGraph, Neighbours
from jobs.looks.link_training import Batch, dropped, link_loss, train


class GraphNet(nn.Module):
    """GraphSAGE, one layer a direction: a source is its content and that of its targets, a target that of its sources.

    A node without links is its content alone, and half of the training sees it so: new products get looks from day one.
    """

    def __init__(self, num_features: int, hidden: int) -> None:
        super().__init__()
        self.source, self.target = (SAGEConv((num_features, num_features), hidden) for _ in range(2))
        self.to_source, self.to_target = (nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden)) for _ in range(2))
        self.bias = nn.Linear(hidden, 1)  # of a target: what is linked often, goes with much

    def vectors(self, features_NF: torch.Tensor, nodes_B: np.ndarray, drawn_BA: np.ndarray, *, as_source: bool) -> torch.Tensor:
        """(B, K) of nodes with their drawn neighbours (-1 = none)."""
        rows, _ = np.nonzero(drawn_BA >= 0)
        neighbours = torch.from_numpy(drawn_BA[drawn_BA >= 0])
        edges = torch.stack([torch.arange(len(neighbours)), torch.from_numpy(rows)])
        conv, head = (self.source, self.to_source) if as_source else (self.target, self.to_target)
        vectors_BK: torch.Tensor = head(conv((features_NF[neighbours], features_NF[torch.from_numpy(nodes_B)]), edges))
        return vectors_BK

    def forward(self, sources_BK: torch.Tensor, targets_MK: torch.Tensor) -> torch.Tensor:
        """(B, M) scores."""
        scores_BM: torch.Tensor = sources_BK @ targets_MK.T + self.bias(torch.relu(targets_MK)).T
        return scores_BM

    def of_pairs(self, sources_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
        """(B,) scores of each source and its own target."""
        scores_B: torch.Tensor = (sources_BK * targets_BK).sum(dim=1) + self.bias(torch.relu(targets_BK)).squeeze(-1)
        return scores_B


class Graph:
    """A trained GraphNet with the vectors of all nodes, their whole neighbourhoods counted."""

    def __init__(self, net: GraphNet, content: Content, graph: LookGraph) -> None:
        features_NF = torch.from_numpy(content.features_NF)
        lists = {True: graph.neighbours(), False: graph.reversed_neighbours()}
        self.sources_NK, self.targets_NK = (whole_vectors(net.eval(), features_NF, lists[side], side) for side in (True, False))
        self.net = net

    @torch.inference_mode()
    def scores(self, sources_B: np.ndarray) -> np.ndarray:
        return np.asarray(self.net(self.sources_NK[torch.from_numpy(sources_B)], self.targets_NK).numpy())


@torch.inference_mode()
def whole_vectors(
    net: GraphNet, features_NF: torch.Tensor, lists: Neighbours, as_source: bool, block: int = 4096
) -> torch.Tensor:
    """(N, K) of every node with all its neighbours, block by block."""
    num_nodes = len(features_NF)
    parts = []
    for start in range(0, num_nodes, block):
        nodes = np.arange(start, min(start + block, num_nodes))
        degrees = lists.degrees(nodes)
        drawn = np.full((len(nodes), max(int(degrees.max(initial=0)), 1)), -1)
        drawn[np.arange(drawn.shape[1]) < degrees[:, None]] = lists.ends[lists.starts[nodes[0]] : lists.starts[nodes[-1] + 1]]
        parts.append(net.vectors(features_NF, nodes, drawn, as_source=as_source))
    return torch.cat(parts)


def train_graph(content: Content, graph: LookGraph, config: TrainLooksConfig) -> Graph:
    """The graph network; its neighbours are drawn without the edge that is to be predicted."""
    torch.manual_seed(config.seed)
    features_NF = torch.from_numpy(content.features_NF)
    net = GraphNet(features_NF.shape[1], config.hidden)
    to_targets, to_sources = graph.neighbours(), graph.reversed_neighbours()
    rng = np.random.default_rng(config.seed + 1)

    def vectors(nodes: np.ndarray, lists: Neighbours, hidden_from: np.ndarray | None, as_source: bool) -> torch.Tensor:
        drawn = lists.sample(nodes, config.fanout, rng)
        if hidden_from is not None:
            drawn[drawn == hidden_from[:, None]] = -1
        drawn[rng.random(len(nodes)) < config.content_only_frac] = -1
        return dropped(net.vectors(features_NF, nodes, drawn, as_source=as_source), config)

    def loss_of(batch: Batch) -> torch.Tensor:
        sources_BK = vectors(batch.sources_B, to_targets, batch.targets_B, True)
        targets_BK = vectors(batch.targets_B, to_sources, batch.sources_B, False)
        against_MK = vectors(batch.negatives_M, to_sources, None, False)
        return link_loss(net.of_pairs(sources_BK, targets_BK), net(sources_BK, against_MK), torch.from_numpy(batch.known_BM))

    train(graph, content, config, net, loss_of)
    return Graph(net, content, graph)
