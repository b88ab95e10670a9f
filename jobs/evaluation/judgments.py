"""What people say about results: agreement, doubtful raters, nDCG and "same or very similar @1" with intervals.

Of one rater on one pair the newest verdict counts; of several raters the median grade, the lower one of two in the middle.
Letters: Q queries, P pairs, G grades.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, log2, sqrt

import numpy as np
import pyarrow as pa

from serve.ranking.records import GRADES

Z_95 = 1.959964  # two-sided 95 % of a normal
GOOD_GRADE = 2  # very similar or the same item
BOOTSTRAPS = 2000
MIN_VERDICTS = 10  # a rater with fewer can't be called careless
Pair = tuple[str, str]  # query, product_id


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with 95 %."""

    mean: float
    low: float
    high: float
    num: int


@dataclass(frozen=True)
class Judgments:
    """The newest verdict of every rater on every pair."""

    by_rater: dict[str, dict[Pair, int]]

    @classmethod
    def of_table(cls, table: pa.Table) -> "Judgments":
        """From rows of serve.ranking.records.JUDGMENTS."""
        found: dict[str, dict[Pair, int]] = {}
        for row in table.sort_by([("at", "ascending")]).to_pylist():
            found.setdefault(row["rater"], {})[row["query"], row["product_id"]] = row["grade"]
        return cls(found)

    def flagged(self) -> dict[str, str]:
        """Raters whose verdicts say little, and why; they do not count."""
        doubts = {}
        for rater, verdicts in self.by_rater.items():
            if len(verdicts) >= MIN_VERDICTS and len(set(verdicts.values())) == 1:
                doubts[rater] = f"all {len(verdicts)} verdicts are {GRADES[next(iter(verdicts.values()))]!r}"
        return doubts

    def grades(self) -> dict[Pair, int]:
        """One grade a pair, of the raters that count."""
        doubtful = self.flagged()
        found: dict[Pair, list[int]] = {}
        for rater, verdicts in self.by_rater.items():
            if rater not in doubtful:
                for pair, grade in verdicts.items():
                    found.setdefault(pair, []).append(grade)
        return {pair: sorted(grades)[(len(grades) - 1) // 2] for pair, grades in found.items()}

    def kappa(self) -> float | None:
        """Mean quadratic weighted kappa over all two raters that count and share pairs; None = no two do."""
        doubtful = self.flagged()
        raters = [verdicts for rater, verdicts in self.by_rater.items() if rater not in doubtful]
        values = []
        for one, other in combinations(raters, 2):
            shared = sorted(one.keys() & other.keys())
            if shared:
                values.append(weighted_kappa([one[pair] for pair in shared], [other[pair] for pair in shared]))
        return float(np.mean(values)) if values else None


def weighted_kappa(first: Sequence[int], second: Sequence[int]) -> float:
    """Cohen's kappa with quadratic weights: 1 = the same verdicts, 0 = as by chance. 1 where both know one grade alone."""
    num = len(GRADES)
    seen_GG = np.zeros((num, num))
    np.add.at(seen_GG, (np.asarray(first), np.asarray(second)), 1.0 / len(first))
    apart_GG = np.square(np.arange(num)[:, None] - np.arange(num)[None]) / (num - 1) ** 2
    chance = float((apart_GG * np.outer(seen_GG.sum(axis=1), seen_GG.sum(axis=0))).sum())
    return 1.0 - float((apart_GG * seen_GG).sum()) / chance if chance else 1.0


def wilson(hits: int, num: int) -> Interval:
    """A share with its Wilson interval."""
    if not num:
        return Interval(0.0, 0.0, 1.0, 0)
    share, z2 = hits / num, Z_95**2
    middle = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = Z_95 * sqrt(share * (1 - share) / num + z2 / (4 * num**2)) / (1 + z2 / num)
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0), num)


def queries_needed(share: float, half_width: float) -> int:
    """How many queries must be graded for an interval of `share` plus or minus `half_width`."""
    return ceil(Z_95**2 * max(share * (1 - share), 1e-9) / half_width**2)


@dataclass(frozen=True)
class JudgedRanking:
    """One release against the verdicts."""

    ndcg_at_10: Interval
    good_at_1: Interval  # the same or very similar in first place
    judged_frac: float  # of the first 10 results; what nobody graded counts as if it were not there
    kappa: float | None
    raters: int
    flagged: dict[str, str]

    def more_queries_for(self, half_width: float) -> int:
        """How many queries more must be graded until good_at_1 is known that well."""
        return max(queries_needed(self.good_at_1.mean, half_width) - self.good_at_1.num, 0)


def judge_ranking(ranked: Mapping[str, Sequence[str]], judgments: Judgments, seed: int) -> JudgedRanking:
    """`ranked`: query → product ids, best first. Queries without a verdict that is above "wrong" on any product say nothing."""
    grades = judgments.grades()
    by_query: dict[str, dict[str, int]] = {}
    for (query, product_id), grade in grades.items():
        by_query.setdefault(query, {})[product_id] = grade
    gains, firsts, judged = [], [], []
    for query, product_ids in ranked.items():
        known = by_query.get(query, {})
        shown = [known[product_id] for product_id in product_ids if product_id in known][:10]
        judged.append(sum(product_id in known for product_id in product_ids[:10]) / max(len(product_ids[:10]), 1))
        if any(known.values()):
            gains.append(ndcg(shown, sorted(known.values(), reverse=True)[:10]))
        if product_ids and product_ids[0] in known:
            firsts.append(known[product_ids[0]] >= GOOD_GRADE)
    return JudgedRanking(
        ndcg_at_10=bootstrap(gains, seed),
        good_at_1=wilson(sum(firsts), len(firsts)),
        judged_frac=float(np.mean(judged)) if judged else 0.0,
        kappa=judgments.kappa(),
        raters=len(judgments.by_rater),
        flagged=judgments.flagged(),
    )


def ndcg(grades: Sequence[int], ideal: Sequence[int]) -> float:
    """With gains 2^grade - 1."""
    earned, best = (sum((2**grade - 1) / log2(place + 2) for place, grade in enumerate(order)) for order in (grades, ideal))
    return earned / best if best else 0.0


def bootstrap(values: Sequence[float], seed: int) -> Interval:
    """Mean over queries, interval by drawing queries again."""
    if not values:
        return Interval(0.0, 0.0, 1.0, 0)
    array = np.asarray(values)
    means = array[np.random.default_rng(seed).integers(0, len(array), (BOOTSTRAPS, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), len(array))
