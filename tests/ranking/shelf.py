"""Candidates as a test needs them."""

from datetime import UTC, datetime
from typing import Any

from serve.ranking.candidates import Candidates

NOW = datetime(2026, 4, 10, tzinfo=UTC)


def shelf(*rows: dict[str, Any], exact: tuple[int, ...] = ()) -> Candidates:
    """One candidate a row; `visual` is its score, the rest are columns of the product."""
    visual = [row["visual"] for row in rows]
    return Candidates.of_rows(visual, [i in exact for i in range(len(rows))], rows)
