"""The settings that are chosen: enough recall, and the least that it costs."""

import pytest

from jobs.evaluation.index_recall import cheapest

NPROBES, FACTORS = (1, 2, 4, 8, 16), (10, 20, 40, 80)


@pytest.mark.parametrize(
    ("found", "num_rows", "chosen"),
    [
        ({10: 4, 20: 4}, 100_000, (4, 10)),  # more candidates change nothing
        ({20: 8, 40: 8}, 100_000, (8, 20)),  # too coarse codes want more of them
        ({10: 16, 20: 4}, 100_000, (4, 20)),  # or many lists want fewer
        ({10: 2, 20: 1}, 10_000, (2, 10)),  # which a small partition does not care for
        ({}, 100_000, (16, 80)),  # nothing is enough: the widest
    ],
)
def test_the_cheapest_that_is_enough(found: dict[int, int], num_rows: int, chosen: tuple[int, int]) -> None:
    """`found`: the least nprobe with which so many candidates are enough; more candidates never want more lists."""
    asked: list[tuple[int, int]] = []

    def recall_of(nprobe: int, factor: int) -> float:
        asked.append((nprobe, factor))
        enough = min((least for candidates, least in found.items() if candidates <= factor), default=99)
        return 0.96 if nprobe >= enough else 0.90

    assert cheapest(recall_of, NPROBES, FACTORS, 0.95, num_rows) == chosen
    assert len(set(asked)) < len(NPROBES) * len(FACTORS), "not everything is tried"
