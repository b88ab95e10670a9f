"""Figures of human judgment for reports and the gate: the verdicts that there are, against one order of products."""

from collections.abc import Mapping, Sequence

from jobs.config import Config
from jobs.evaluation.judgments import Judgments, judge_ranking
from jobs.tables import Tables, read_table, table_version
from serve.ranking.records import JUDGMENTS_TABLE

HALF_WIDTH = 0.05  # that reports say how many more photos are needed for


def judged_figures(config: Config, ranked: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """`ranked`: image_id of a photo → product ids, best first. Empty where nobody graded any of it."""
    tables = Tables(config.store.tables)
    if table_version(tables, JUDGMENTS_TABLE) is None:
        return {}
    judged = judge_ranking(ranked, Judgments.of_table(read_table(tables, JUDGMENTS_TABLE)), config.evaluate.seed)
    if not judged.good_at_1.num:
        return {}
    figures = {"judged_good_at_1": judged.good_at_1, "judged_ndcg_at_10": judged.ndcg_at_10}
    flat = {name: interval.mean for name, interval in figures.items()}
    flat |= {f"{name}_{side}": getattr(interval, side) for name, interval in figures.items() for side in ("low", "high")}
    flat |= {"judged_photos": judged.good_at_1.num, "judged_frac": judged.judged_frac, "judged_raters": judged.raters}
    flat |= {"judged_raters_flagged": len(judged.flagged), "judged_more_photos": judged.more_queries_for(HALF_WIDTH)}
    flat |= {"judged_kappa": judged.kappa} if judged.kappa is not None else {}
    return {name: round(float(value), 4) for name, value in flat.items()}
