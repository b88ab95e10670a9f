"""The look graph: which products go together, from outfits, baskets, scenes and the feed's links.

A file of links is JSONL, each row of one of two forms:
    {"product_ids": [...]}                          a set: an outfit, a basket, the products of one scene; every pair is linked
    {"product_id" or "group_id": ..., "linked": [...], "type": ...}     the feed's related, cross-sell links; one direction

Letters: N nodes, E edges.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from jobs.config import JobError


@dataclass(frozen=True)
class LookGraph:
    """Directed edges between N nodes, each once, sorted by source, then by target."""

    num_nodes: int
    sources_E: np.ndarray  # int64
    targets_E: np.ndarray  # int64

    @classmethod
    def of_edges(cls, num_nodes: int, edges_E2: np.ndarray) -> "LookGraph":
        """From (E, 2) source and target; doubled edges count once, loops are dropped."""
        edges_E2 = np.asarray(edges_E2, np.int64).reshape(-1, 2)
        edges_E2 = edges_E2[edges_E2[:, 0] != edges_E2[:, 1]]
        keys = np.unique(edges_E2[:, 0] * num_nodes + edges_E2[:, 1])
        return cls(num_nodes, keys // max(num_nodes, 1), keys % max(num_nodes, 1))

    @cached_property
    def keys_E(self) -> np.ndarray:
        """(E,) int64, ascending: one number an edge, made once, as every batch of a training looks edges up."""
        return np.asarray(self.sources_E * self.num_nodes + self.targets_E)

    @property
    def num_edges(self) -> int:
        return len(self.sources_E)

    def neighbours(self) -> "Neighbours":
        """Targets of every node."""
        return Neighbours.of(self.num_nodes, self.sources_E, self.targets_E)

    def reversed_neighbours(self) -> "Neighbours":
        """Sources of every node."""
        return Neighbours.of(self.num_nodes, self.targets_E, self.sources_E)

    def without_nodes(self, held_out_N: np.ndarray) -> "LookGraph":
        """The edges that touch no node of the mask: those nodes are unseen."""
        kept_E = ~(held_out_N[self.sources_E] | held_out_N[self.targets_E])
        return LookGraph(self.num_nodes, self.sources_E[kept_E], self.targets_E[kept_E])

    def holds(self, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Bool: whether each source is linked to its target; shapes broadcast. Quickest where both ascend."""
        wanted = np.asarray(sources, np.int64) * self.num_nodes + targets
        places = np.minimum(np.searchsorted(self.keys_E, wanted), max(self.num_edges - 1, 0))
        return np.asarray(self.keys_E[places] == wanted) if self.num_edges else np.zeros(wanted.shape, bool)


@dataclass(frozen=True)
class Neighbours:
    """One list a node, end to end: those of node n are `ends[starts[n] : starts[n + 1]]`."""

    starts: np.ndarray  # (N + 1,) int64
    ends: np.ndarray  # (E,) int64

    @classmethod
    def of(cls, num_nodes: int, from_E: np.ndarray, to_E: np.ndarray) -> "Neighbours":
        """The lists of an edge list in any order."""
        order = np.argsort(from_E, kind="stable")
        return cls(np.concatenate([[0], np.cumsum(np.bincount(from_E, minlength=num_nodes))]), to_E[order])

    def of_node(self, node: int) -> np.ndarray:
        """Neighbours of one node."""
        return self.ends[self.starts[node] : self.starts[node + 1]]

    def degrees(self, nodes: np.ndarray) -> np.ndarray:
        """How many each has."""
        return np.asarray(self.starts[nodes + 1] - self.starts[nodes])

    def sample(self, nodes_B: np.ndarray, fanout: int, rng: np.random.Generator) -> np.ndarray:
        """(B, fanout) neighbours drawn with replacement; -1 for a node without any."""
        degrees_B = self.degrees(nodes_B)
        drawn_BF = (rng.random((len(nodes_B), fanout)) * degrees_B[:, None]).astype(np.int64)
        places_BF = np.minimum(self.starts[nodes_B][:, None] + drawn_BF, max(len(self.ends) - 1, 0))
        found_BF = self.ends[places_BF] if len(self.ends) else np.zeros_like(places_BF)
        return np.where(degrees_B[:, None] > 0, found_BF, -1)


def read_links(paths: Collection[Path], node_of: Mapping[str, int], num_nodes: int, types: Collection[str]) -> LookGraph:
    """The links between known products or groups; others are not part of this catalog. `types`: of feed links; none = all.

    Raises JobError for a row of neither form, naming file and line.
    """
    edges: list[tuple[int, int]] = []
    for path in paths:
        if not path.is_file():
            raise JobError(f"train_looks: {path} is not there")
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            for source, target in pairs_of(line, types, f"{path}, line {number}"):
                if source in node_of and target in node_of:
                    edges.append((node_of[source], node_of[target]))
    return LookGraph.of_edges(num_nodes, np.array(edges, np.int64).reshape(-1, 2))


def pairs_of(line: str, types: Collection[str], where: str) -> Iterator[tuple[str, str]]:
    """The linked ids of one row."""
    try:
        row: Any = json.loads(line)
        if "product_ids" in row:
            yield from permutations(row["product_ids"], 2)
        elif not types or row["type"] in types:
            source = row["product_id"] if "product_id" in row else row["group_id"]
            yield from ((source, target) for target in row["linked"])
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(
            f'{where}: neither {{"product_ids": [...]}} nor {{"product_id" or "group_id", "type", "linked": [...]}} ({error!r})'
        ) from error
