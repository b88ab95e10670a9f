"""What came after a release: parts that are added answer as if all had been written at once."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.index.inserts import CHANGE, DELETE, EMPTY, MOST_PARTS, PUT, Fresh, Row, newest
from tests.index.parts import unit

DIM, DIGEST = 8, "d"


def row(number: int, kind: str, at: int, seed: int, digest: str = DIGEST) -> Row:
    """A product with one photo of two crops; none where it is deleted."""
    random = np.random.default_rng(seed)
    head = {**EMPTY, "product_id": f"p{number}", "at": at, "kind": kind, "bundle_digest": digest, "title": f"T{seed}"}
    if kind == DELETE:
        return {**head, "crops": None, "available": False}
    sides = dict.fromkeys(("x0", "y0"), 0.0) | dict.fromkeys(("x1", "y1"), 9.0)
    crops: list[dict[str, Any]] = [
        {"position": 0, "image_uri": "file:///p.jpg", "image_id": f"{seed:064x}", "crop": crop, **sides}
        | {"embedding": vector.tobytes(), "hash": random.bytes(32) if crop == 0 else None}
        | {"colour": random.bytes(48) if crop == 0 else None}
        for crop, vector in enumerate(unit(random.standard_normal((2, DIM))))
    ]
    return {**head, "available": True, "crops": crops}


def answers(fresh: Fresh) -> list[tuple[str, float, str | None]]:
    """The nearest of all products, and what is said of them."""
    queries = unit(np.random.default_rng(0).standard_normal((2, DIM)))
    found = fresh.search(queries, 50, None)
    titles = {c.product_id: (fresh.products.product(c.product_id) or {}).get("title") for of_one in found for c in of_one}
    return [(c.product_id, round(c.score, 3), titles[c.product_id]) for of_one in found for c in of_one]


KINDS = st.sampled_from([PUT, CHANGE, DELETE])
BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 6), KINDS), min_size=1, max_size=4), min_size=1, max_size=14)


@settings(deadline=None, max_examples=30)
@given(batches=BATCHES)
def test_parts_answer_as_one(batches: list[list[tuple[int, str]]]) -> None:
    """Products put, changed and deleted in any order: the same products, scores and titles as of one shard of all."""
    fresh, known, at = Fresh({}, ()), dict[str, Row](), 0
    for batch in batches:
        rows = []
        for number, kind in batch:
            at += 1
            rows.append(row(number, kind, at, at))
        before = answers(fresh)
        later = fresh.with_later(rows, DIM, DIGEST)
        assert answers(fresh) == before, "a state never changes: queries still read it"
        fresh, known = later, newest(rows, known)
        whole = Fresh.build(known, DIM, DIGEST)
        assert answers(fresh) == answers(whole) and fresh.rows == whole.rows
        assert len(fresh.shards) <= MOST_PARTS and len({opened.path for opened in fresh.shards}) == len(fresh.shards)
        for product_id, newest_row in known.items():
            is_there = newest_row["kind"] != DELETE
            assert (fresh.products.product(product_id) is not None) == is_there
            assert (fresh.products.embedding(product_id) is not None) == is_there


def test_a_row_of_another_bundle_waits() -> None:
    fresh = Fresh({}, ()).with_later([row(1, PUT, 1, 1), row(2, PUT, 2, 2)], DIM, DIGEST)
    fresh = fresh.with_later([row(1, PUT, 3, 3, "other"), row(3, DELETE, 4, 4, "other")], DIM, DIGEST)
    assert fresh.rows.keys() == {"p2", "p3"} and fresh.products.product("p1") is None
    assert [c.product_id for c in fresh.search(unit(np.ones((1, DIM))), 5, None)[0]] == ["p2"]


@pytest.mark.parametrize("num", [1, MOST_PARTS, 3 * MOST_PARTS])
def test_parts_are_written_into_one(num: int) -> None:
    fresh = Fresh({}, ())
    for at in range(1, num + 1):
        fresh = fresh.with_later([row(at, PUT, at, at)], DIM, DIGEST)
    assert 1 <= len(fresh.shards) <= MOST_PARTS and len(fresh.rows) == num
    assert len(fresh.search(unit(np.ones((1, DIM))), num, None)[0]) == num
