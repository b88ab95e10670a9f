"""Staged rows as table rows: nothing lost, nothing doubled, and a sum that does not add up is refused."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from jobs.config import JobError
from jobs.raydata.actors import ROWS
from jobs.raydata.outcomes import explode, outcomes
from jobs.raydata.staging import Plan
from jobs.tables import CHECKS, FEATURES, FETCHES

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def crop(number: int) -> dict[str, Any]:
    box = {"x0": 0.0, "y0": 0.0, "x1": 8.0 - number, "y1": 8.0}
    return {
        "crop": number,
        **box,
        "label": None,
        "score": 1.0,
        "category": "a",
        "category_prob": 0.5,
        "embedding": bytes([number] * 4),
    }


def row(uri: str, status: str, image_id: str | None, reason: str | None = None, num_crops: int = 0) -> dict[str, Any]:
    image = {"image_uri": uri, "status": status, "image_id": image_id, "reason": reason, "detail": reason, "num_bytes": 9}
    image |= {"fetched_at": NOW}
    if status != "embedded":
        return image
    seen = {"width": 8, "height": 8, "hash": image_id.encode(), "hash_quality": 80.0, "colour": b"c"} if image_id else {}
    return image | seen | {"crops": [crop(number) for number in range(num_crops)]}


STAGED = [
    row("u1", "embedded", "i1", num_crops=3),
    row("u2", "duplicate", "i1"),
    row("u3", "rejected", None, "timeout"),
    row("u4", "rejected", "i4", "corrupt"),
    row("u5", "duplicate", "i4"),  # equal bytes of an image that cannot be decoded
    row("u6", "embedded", "i6", num_crops=1),
    row("u7", "duplicate", "i7"),  # stored by an earlier run
    row("u8", "duplicate", "i8"),  # its owner was not finished before a kill, and is another picture now
]


def staged(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ROWS)


def plan(num_pending: int) -> Plan:
    return Plan("r", "t", 1, "digest", 1, num_pending)


def test_a_duplicate_shares_the_fate_of_the_image_it_equals() -> None:
    table, checks, result = outcomes(staged(STAGED), plan(8), rate=12.34, stored_ids=["i7"])
    assert not checks.num_rows
    assert (result.images_in, result.embedded, result.duplicates, result.rejected, result.images_per_s) == (8, 2, 2, 4, 12.3)
    assert table.schema.equals(FETCHES)
    assert {(r["image_uri"], r["status"], r["reason"], r["image_id"]) for r in table.to_pylist()} == {
        ("u1", "embedded", None, "i1"),
        ("u2", "embedded", None, "i1"),
        ("u3", "rejected", "timeout", None),
        ("u4", "rejected", "corrupt", "i4"),
        ("u5", "rejected", "corrupt", "i4"),
        ("u6", "embedded", None, "i6"),
        ("u7", "embedded", None, "i7"),
        ("u8", "rejected", "fetch_failed", "i8"),
    }


def test_what_is_asked_for_again_changes_only_for_a_sound_photo() -> None:
    embedded, rejected = {"known": "embedded"}, {"known": "rejected"}
    rows = [
        row("same", "unchanged", "i1") | embedded | {"etag": "e1"},
        row("other", "embedded", "i2", num_crops=1) | embedded,
        row("away", "rejected", None, "timeout") | embedded,
        row("broken", "rejected", "i4", "corrupt") | embedded,
        row("still broken", "rejected", "i5", "corrupt") | rejected,
        row("mended", "embedded", "i6", num_crops=1) | rejected,
        row("broken and away", "rejected", None, "host_down") | rejected,
        row("broken like another", "duplicate", "i5") | embedded,
    ]
    fetches, checks, result = outcomes(staged(rows), plan(8), rate=1.0, stored_ids=[])
    assert fetches.schema.equals(FETCHES) and checks.schema.equals(CHECKS)
    assert {(r["image_uri"], r["status"]) for r in fetches.to_pylist()} == {
        ("other", "embedded"),
        ("still broken", "rejected"),
        ("mended", "embedded"),
    }
    noted = {r["image_uri"]: (r["etag"], r["fetched_at"]) for r in checks.to_pylist()}
    assert noted == {"same": ("e1", NOW), "broken": (None, NOW), "broken like another": (None, NOW)}
    assert (result.images_in, result.embedded, result.rejected, result.unchanged) == (8, 2, 1, 5)


@pytest.mark.parametrize(
    ("rows", "num_pending"), [(STAGED, 9), (STAGED[1:], 8), ([*STAGED, row("u9", "embedded", "i1", num_crops=1)], 9)]
)
def test_a_sum_that_does_not_add_up_is_refused(rows: list[dict[str, Any]], num_pending: int) -> None:
    with pytest.raises(JobError, match="nothing is committed"):
        outcomes(staged(rows), plan(num_pending), rate=0.0, stored_ids=["i7"])


def test_one_feature_row_a_crop() -> None:
    (batch,) = staged(STAGED).to_batches()
    rows = explode(batch, "digest").to_pylist()
    assert explode(batch, "digest").schema.equals(FEATURES)
    assert [(r["image_id"], r["crop"], r["x1"], r["embedding"]) for r in rows] == [
        ("i1", 0, 8.0, b"\0\0\0\0"),
        ("i1", 1, 7.0, b"\1\1\1\1"),
        ("i1", 2, 6.0, b"\2\2\2\2"),
        ("i6", 0, 8.0, b"\0\0\0\0"),
    ]
    assert [(r["hash"], r["colour"], r["hash_quality"]) for r in rows] == [
        (b"i1", b"c", 80.0),
        (None, None, None),
        (None, None, None),
        (b"i6", b"c", 80.0),
    ]


def test_no_features_at_all() -> None:
    (batch,) = staged(STAGED[1:5]).to_batches()
    assert explode(batch, "digest").num_rows == 0
