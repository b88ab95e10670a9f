"""Photos with known answers as a file gives them: what is hidden of each product, and lines that say nothing sound."""

import json
from pathlib import Path

import pytest

from jobs.config import JobError
from jobs.evaluation.queries import load_queries


def written(tmp_path: Path, **row: object) -> Path:
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps({"path": "a.jpg", "product_ids": ["p", "q", "r"], **row}) + "\n")
    return path


def test_how_much_is_seen(tmp_path: Path) -> None:
    (query,) = load_queries(written(tmp_path, occluded_frac=[0.05, 0.1, 0.25]), {}, 10, 0)
    assert [query.visibility(number) for number in range(3)] == ["clear", "partly", "hidden"]
    (query,) = load_queries(written(tmp_path), {}, 10, 0)
    assert query.visibility(0) is None


@pytest.mark.parametrize("hidden", [[0.1], [0.1, 0.2, "much"], 0.3])
def test_a_wrong_line_is_named(tmp_path: Path, hidden: object) -> None:
    with pytest.raises(JobError, match="line 1: not a query"):
        load_queries(written(tmp_path, occluded_frac=hidden), {}, 10, 0)
