"""From scores to a look: the best targets, never two of one kind, and only kinds that were seen together.

Letters: N nodes, B sources, G kinds.
"""

import numpy as np

from jobs.looks.content import Content
from jobs.looks.graph import LookGraph
from jobs.looks.models import LookModel

BLOCK = 256  # sources scored at once


class LookComposer:
    """Chooses looks for one catalog."""

    def __init__(self, content: Content, graph: LookGraph, size: int) -> None:
        self.size = size
        names, self.kind_N = np.unique(np.array(content.kinds), return_inverse=True)
        self.together_GG = np.zeros((len(names), len(names)), bool)  # kinds with a link between them
        self.together_GG[self.kind_N[graph.sources_E], self.kind_N[graph.targets_E]] = True
        self.together_GG |= self.together_GG.T
        np.fill_diagonal(self.together_GG, False)
        self.order_N = np.argsort(self.kind_N, kind="stable")  # nodes, kind by kind
        self.starts_G = np.searchsorted(self.kind_N[self.order_N], np.arange(len(names)))

    def look(self, source: int, scores_N: np.ndarray) -> list[int]:
        """Targets, best first: each of another kind than the source and than those before it, and met with all of them."""
        scores_N = scores_N[self.order_N]
        best_G = np.maximum.reduceat(scores_N, self.starts_G)
        allowed_G = self.together_GG[self.kind_N[source]].copy()
        chosen: list[int] = []
        for kind in np.argsort(-best_G, kind="stable"):
            if allowed_G[kind]:
                start, end = self.starts_G[kind], self.starts_G[kind + 1] if kind + 1 < len(self.starts_G) else None
                chosen.append(int(self.order_N[start:end][scores_N[start:end].argmax()]))
                allowed_G &= self.together_GG[kind]
        return chosen[: self.size]

    def looks(self, model: LookModel, num_nodes: int) -> list[list[int]]:
        """Of every node; a node of a kind that nothing is linked with has an empty one."""
        found: list[list[int]] = []
        for start in range(0, num_nodes, BLOCK):
            sources = np.arange(start, min(start + BLOCK, num_nodes))
            found += [self.look(int(s), scores) for s, scores in zip(sources, model.scores(sources), strict=True)]
        return found
