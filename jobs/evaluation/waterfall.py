"""Where known answers are lost: every missed (photo, product) pair is charged to exactly one stage.

The stages are mended one after the other, from the front; the first mending that brings the product among the best K is the stage
that had lost it. What no mending brings back is lost by the embedding itself. Letters: Q query crops, D width, K places.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from serve.index.exact import exact_search
from serve.index.release import Release
from serve.index.shard import OpenShard
from serve.index.vectors import map_rows

STAGES = {  # stage: what loses the product there
    "not_in_catalog": "the release has no such product",
    "hash_exit": "the hash stage answered with another product",
    "ranking": "a crop's own results have it, the fused answer does not",
    "detector": "its box, drawn by hand, finds it",
    "routing": "its partition was not searched",
    "coarse_list": "its list was not looked at",
    "codes": "its code put it behind the candidates that are re-scored",
    "refine": "the stored vector differs from the embedded one",
    "embedding": "others are nearer by exact search",
}
Lists = list[list[str]]  # product ids by crop


@dataclass(frozen=True)
class Pair:
    """A photo and one product in it, with what is needed to search again. `crops`: places in the embeddings of all pairs."""

    photo: str
    product_id: str
    ranked: tuple[str, ...]  # of the whole search
    without_hash: tuple[str, ...]  # and with the hash stage left out
    found_crops: tuple[int, ...]  # as the detector found them; the one at the product's box where that is known
    true_crops: tuple[int, ...]  # the product's own box where that is known, else found_crops


@dataclass(frozen=True)
class Miss:
    """A pair that was not found, and the stage that is charged."""

    photo: str
    product_id: str
    stage: str


@dataclass(frozen=True)
class Waterfall:
    """All misses of `num_pairs` pairs."""

    num_pairs: int
    misses: tuple[Miss, ...]

    @property
    def lost(self) -> dict[str, int]:
        """Pairs by stage, in the order of the path."""
        counts = Counter(miss.stage for miss in self.misses)
        return {stage: counts[stage] for stage in STAGES}

    def metrics(self) -> dict[str, float]:
        """Share of all pairs that each stage loses: together 1 - recall."""
        return {f"lost_{stage}_frac": round(num / self.num_pairs, 4) for stage, num in self.lost.items()}

    def over_budget(self, budgets: Mapping[str, float]) -> list[str]:
        """Stages that lose more than their budget, in words; a budget above zero allows one pair."""
        return [
            f"{stage} loses {num} of {self.num_pairs} (budget {budgets.get(stage, 1.0):g}): {STAGES[stage]}"
            for stage, num in self.lost.items()
            if num > ceil(budgets.get(stage, 1.0) * self.num_pairs)
        ]

    def table(self) -> str:
        """One line a stage: pairs left when the stage has had its share."""
        left = self.num_pairs
        lines = [f"{'stage':<16}{'lost':>6}{'left':>7}  what loses it", f"{'asked':<16}{'':>6}{left:>7}"]
        for stage, num in self.lost.items():
            left -= num
            lines.append(f"{stage:<16}{num:>6}{left:>7}  {STAGES[stage]}")
        return "\n".join(lines) + "\n"


def charge(
    pairs: Sequence[Pair],
    embeddings_QD: np.ndarray,
    routes: Sequence[Sequence[str] | None],
    release: Release,
    originals: Mapping[str, Path],
    k: int,
) -> Waterfall:
    """The waterfall of `pairs`. `originals`: for each shard path the file of its vectors as they were embedded."""
    missed = [pair for pair in pairs if pair.product_id not in pair.ranked[:k]]
    stage_of: dict[int, str] = {i: "not_in_catalog" for i, pair in enumerate(missed) if release.product(pair.product_id) is None}
    stage_of |= {
        i: "hash_exit"
        for i, pair in enumerate(missed)
        if i not in stage_of and pair.product_id in pair.without_hash[:k] and pair.without_hash != pair.ranked
    }

    def mend(stage: str, crops_of: Callable[[Pair], tuple[int, ...]], search: Callable[[np.ndarray], Lists]) -> None:
        """Charges `stage` with the pairs that `search` of these crops finds."""
        open_pairs = [i for i in range(len(missed)) if i not in stage_of]
        crops = np.array(sorted({crop for i in open_pairs for crop in crops_of(missed[i])}), np.int64)
        if not crops.size:
            return
        found = dict(zip(crops.tolist(), search(crops), strict=True))
        for i in open_pairs:
            if any(missed[i].product_id in found[crop] for crop in crops_of(missed[i])):
                stage_of[i] = stage

    def routed(crops: np.ndarray) -> Lists:
        return [[c.product_id for c in release.search(embeddings_QD[[crop]], k, partitions=routes[crop])[0]] for crop in crops]

    def everywhere(crops: np.ndarray) -> Lists:
        return [[c.product_id for c in found] for found in release.search(embeddings_QD[crops], k)]

    mend("ranking", lambda pair: pair.found_crops, routed)
    mend("detector", lambda pair: pair.true_crops, routed)
    mend("routing", lambda pair: pair.true_crops, everywhere)
    partitions = release.group.partitions.values()
    specs = [partition.spec for partition in partitions]
    try:
        for stage, setting in (("coarse_list", "nprobe"), ("codes", "refine_factor")):
            for partition in partitions:  # all lists, then all rows
                partition.spec = partition.spec.model_copy(update={setting: partition.num_rows + 1})
            mend(stage, lambda pair: pair.true_crops, everywhere)
    finally:
        for partition, spec in zip(partitions, specs, strict=True):
            partition.spec = spec
    shards = release.group.shards
    mend("refine", lambda pair: pair.true_crops, lambda crops: nearest_products(shards, originals, embeddings_QD[crops], k))
    misses = tuple(Miss(pair.photo, pair.product_id, stage_of.get(i, "embedding")) for i, pair in enumerate(missed))
    return Waterfall(len(pairs), misses)


def nearest_products(shards: Sequence[OpenShard], originals: Mapping[str, Path], queries_QD: np.ndarray, k: int) -> Lists:
    """Product ids of the k nearest distinct products by the vectors as they were embedded, for each query."""
    best: list[dict[str, float]] = [{} for _ in queries_QD]
    for opened in shards:
        records, vectors_ND = opened.shard.records, map_rows(originals[opened.path], np.float16, opened.shard.dim)
        crops = k * int(np.bincount(records.product_of_row_R).max(initial=1))  # enough for k products
        scores_QF, rows_QF = exact_search(queries_QD, vectors_ND, crops)
        for of_query, scores_F, rows_F in zip(best, scores_QF, rows_QF, strict=True):
            for score, row in zip(scores_F[rows_F >= 0], rows_F[rows_F >= 0], strict=True):
                of_query.setdefault(records.product_id(int(records.product_of_row_R[row])), float(score))
    return [[p for p, _ in sorted(of_query.items(), key=lambda item: (-item[1], item[0]))[:k]] for of_query in best]
