"""Verdicts of people: agreement, careless raters, intervals, nDCG."""

from datetime import UTC, datetime, timedelta
from math import log2

import pyarrow as pa
import pytest

from jobs.evaluation.judgments import Judgments, judge_ranking, queries_needed, weighted_kappa, wilson
from serve.ranking.records import JUDGMENTS

START = datetime(2026, 1, 1, tzinfo=UTC)


def table(*rows: tuple[str, str, str, int]) -> pa.Table:
    """(rater, query, product_id, grade), in the order they were given."""
    names = ("rater", "query", "product_id", "grade")
    given = [dict(zip(names, row, strict=True)) | {"at": START + timedelta(seconds=i)} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(given, schema=JUDGMENTS)


def test_kappa_by_hand() -> None:
    assert weighted_kappa([0, 1, 2, 3], [0, 1, 2, 3]) == 1.0
    assert weighted_kappa([0, 3, 0, 3], [3, 0, 3, 0]) == pytest.approx(-1.0)
    # Observed: one of four pairs is one grade apart, which weighs 1/9. By chance: the mean over all 16 pairs.
    first, second = [0, 1, 2, 3], [0, 1, 2, 2]
    chance = sum((a - b) ** 2 for a in first for b in second) / 9 / 16
    assert weighted_kappa(first, second) == pytest.approx(1 - (1 / 9 / 4) / chance)
    assert weighted_kappa([2, 2], [2, 2]) == 1.0


def test_the_newest_verdict_counts_and_the_median_of_raters() -> None:
    judgments = Judgments.of_table(
        table(
            ("a", "q", "p", 0), ("a", "q", "p", 3), ("b", "q", "p", 2), ("c", "q", "p", 1), ("b", "q", "r", 0), ("c", "q", "r", 3)
        )
    )
    assert judgments.grades() == {("q", "p"): 2, ("q", "r"): 0}


def test_a_rater_who_grades_everything_the_same_is_flagged_and_does_not_count() -> None:
    careful = [("a", "q", f"p{i}", i % 4) for i in range(12)]
    careless = [("z", "q", f"p{i}", 3) for i in range(12)]
    judgments = Judgments.of_table(table(*careful, *careless))
    assert judgments.flagged() == {"z": "all 12 verdicts are 'same item'"}
    assert judgments.grades() == {("q", f"p{i}"): i % 4 for i in range(12)} and judgments.kappa() is None
    few = Judgments.of_table(table(*careless[:5]))
    assert few.flagged() == {} and few.grades()["q", "p0"] == 3


def test_figures_of_a_ranking() -> None:
    judgments = Judgments.of_table(
        table(("a", "q1", "x", 3), ("a", "q1", "y", 1), ("a", "q1", "z", 0), ("a", "q2", "x", 0), ("a", "q2", "y", 2))
    )
    judged = judge_ranking({"q1": ["x", "y", "z"], "q2": ["x", "new", "y"], "q3": ["x"]}, judgments, seed=0)
    second = (3 / log2(3)) / 3  # q2: wrong first, then very similar; what nobody graded is not there
    assert judged.ndcg_at_10.mean == pytest.approx((1.0 + second) / 2)
    assert (judged.good_at_1.mean, judged.good_at_1.num) == (0.5, 2)
    assert judged.judged_frac == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert judged.more_queries_for(0.05) == queries_needed(0.5, 0.05) - 2 == 383


def test_wilson_interval_by_hand() -> None:
    interval = wilson(8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0).high == 1.0 and wilson(10, 10).high == pytest.approx(1.0)
