"""How well a look model knows links it has not seen: Recall@10 and AUC, split by product.

The products are cut into folds. For each fold every link that touches one of its products is taken away, the model is trained on
the rest, and the held-out products are asked for their links: a new product, known by its content alone.
Letters: N nodes, B sources.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jobs.config import TrainLooksConfig
from jobs.looks.content import Content
from jobs.looks.graph import LookGraph
from jobs.looks.link_training import train_mlp
from jobs.looks.models import ORDER, Cooccurrence, LookModel, Nearest, Popularity

TOP = 10
BOOTSTRAPS = 1000


def train_graph(content: Content, graph: LookGraph, config: TrainLooksConfig) -> LookModel:
    """See jobs.looks.graph_net, which is imported where it is needed: a night without links has no use for it."""
    from jobs.looks import graph_net

    return graph_net.train_graph(content, graph, config)


Train = Callable[[Content, LookGraph, TrainLooksConfig], LookModel]
TRAIN: dict[str, Train] = {
    "popularity": lambda content, graph, _: Popularity(content, graph),
    "cooccurrence": lambda content, graph, _: Cooccurrence(content, graph),
    "nearest": lambda content, graph, _: Nearest(content, graph),
    "mlp": train_mlp,
    "graph": train_graph,
}


@dataclass(frozen=True)
class LookScore:
    """One model over all held-out sources; arrays have one value a source."""

    recall_at_10_B: np.ndarray
    auc_B: np.ndarray

    @property
    def recall_at_10(self) -> float:
        return float(self.recall_at_10_B.mean())

    @property
    def auc(self) -> float:
        return float(self.auc_B.mean())


def fold_of(content: Content, config: TrainLooksConfig) -> np.ndarray:
    """(N,) the fold of each node: a seeded permutation, so that folds are equally large."""
    return np.asarray(np.random.default_rng(config.seed).permutation(content.num_nodes) % config.folds)


def cross_validate(
    content: Content, graph: LookGraph, config: TrainLooksConfig, truth: LookGraph | None = None
) -> dict[str, LookScore]:
    """Every model, every fold, judged by `truth` (none = the links themselves).

    Sources without a link in the truth are not asked: nobody knows what goes with them.
    """
    folds_N = fold_of(content, config)
    truth = truth or graph
    parts: dict[str, list[LookScore]] = {name: [] for name in ORDER}
    for fold in range(config.folds):
        held_out_N = folds_N == fold
        seen = graph.without_nodes(held_out_N)
        if not (held_out_N & has_links(truth)).any():
            continue
        for name in ORDER:
            parts[name].append(judge(TRAIN[name](content, seen, config), truth, held_out_N))
    return {
        name: LookScore(
            np.concatenate([score.recall_at_10_B for score in scores]), np.concatenate([score.auc_B for score in scores])
        )
        for name, scores in parts.items()
    }


def has_links(truth: LookGraph) -> np.ndarray:
    """(N,) bool."""
    return truth.neighbours().degrees(np.arange(truth.num_nodes)) > 0


def judge(model: LookModel, truth: LookGraph, asked_N: np.ndarray) -> LookScore:
    """A trained model on the sources of the mask that have links in `truth`."""
    neighbours = truth.neighbours()
    sources = np.flatnonzero(asked_N & has_links(truth))
    found = [link_scores(model.scores(np.array([s]))[0], int(s), neighbours.of_node(int(s))) for s in sources]
    return LookScore(np.array([recall for recall, _ in found]), np.array([auc for _, auc in found]))


def link_scores(scores_N: np.ndarray, source: int, linked: np.ndarray) -> tuple[float, float]:
    """Recall@10 (of at most ten links) and AUC of one source; equal scores count half, so that a constant has AUC 0.5."""
    candidates = np.delete(np.arange(len(scores_N)), source)
    is_link = np.isin(candidates, linked)
    values = scores_N[candidates]
    above = np.array([(values > v).sum() for v in values[is_link]])
    equal = np.array([(values == v).sum() for v in values[is_link]])  # itself among them
    in_top = np.clip((TOP - above) / equal, 0.0, 1.0)  # the chance to be among the first ten when ties are drawn by lot
    ranks = average_ranks(values)
    num, others = int(is_link.sum()), int((~is_link).sum())
    auc = (ranks[is_link].sum() - num * (num - 1) / 2) / max(num * others, 1)
    return float(in_top.sum() / min(TOP, num)), float(auc)


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, smallest first; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse])


def choose(measured: Mapping[str, LookScore], seed: int) -> str:
    """The simplest model whose Recall@10 is not measurably below the best one's (95 % of paired bootstraps say so)."""
    best = max(ORDER, key=lambda name: measured[name].recall_at_10)
    rng = np.random.default_rng(seed)
    num = len(measured[best].recall_at_10_B)
    drawn = rng.integers(0, num, (BOOTSTRAPS, num))
    for name in ORDER:
        behind = (measured[best].recall_at_10_B - measured[name].recall_at_10_B)[drawn].mean(axis=1)
        if np.quantile(behind, 0.05) <= 0:
            return name
    return best
