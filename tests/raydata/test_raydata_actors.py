"""Who owns which bytes, and pixels on their way between two actors."""

import hashlib
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.raydata.actors import DECODED, EMBEDDED, REJECTED, ImageClaims, is_unit, pixel_column, pixel_views

NOW = datetime(2026, 11, 26, tzinfo=UTC)
SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def claims(*stored: str, **owners: str) -> ImageClaims:
    ids = np.sort(np.array([digest(name) for name in stored], dtype="S32"))
    return ImageClaims(ids, {digest(name): uri for name, uri in owners.items()})


def test_first_claim_owns() -> None:
    run = claims()
    assert run.claim(["u1", "u2", "u3"], [digest("a"), digest("b"), digest("a")]) == [True, True, False]
    assert run.claim(["u4", "u1"], [digest("b"), digest("a")]) == [False, True]  # u1 again: its block was retried
    assert run.claim([], []) == []


def test_stored_and_staged_images_are_owned_already() -> None:
    run = claims("old", "older", staged="u0")
    asked = [digest("old"), digest("staged"), digest("staged"), digest("new"), digest("zz")]
    assert run.claim(["u1", "u0", "u2", "u3", "u4"], asked) == [False, True, False, True, True]


def test_digests_that_end_in_zeros_stay_apart() -> None:
    ids = [b"\1" * 31 + b"\0", b"\1" * 30 + b"\0\0", b"\1" * 32]
    run = ImageClaims(np.sort(np.array(ids[:1], dtype="S32")), {})
    assert run.claim(["u1", "u2", "u3"], ids) == [False, True, True]


@settings(deadline=None)  # wall clock is no property
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcdef")), max_size=30), st.integers(0, 2**31))
def test_each_image_has_one_owner(calls: list[tuple[int, str]], seed: int) -> None:
    """Whatever the order of the calls, with retries."""
    run = claims("f")
    order = np.random.default_rng(seed).permutation(len(calls) * 2) % max(len(calls), 1)
    owned: dict[str, set[str]] = {}
    for number in order:
        uri, name = f"{calls[number][0]}{calls[number][1]}", calls[number][1]
        if run.claim([uri], [digest(name)])[0]:
            owned.setdefault(name, set()).add(uri)
    assert all(len(uris) == 1 for uris in owned.values())
    assert set(owned) == {name for _, name in calls} - {"f"}


@settings(deadline=None)  # wall clock is no property
@given(st.lists(st.one_of(st.none(), SIDES), max_size=6))
def test_pixels_arrive_as_they_left(sides: list[tuple[int, int] | None]) -> None:
    rng = np.random.default_rng(0)
    images = [None if side is None else rng.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
    rows = [
        {"image_uri": "u", "fetched_at": NOW, "status": REJECTED}
        if image is None
        else {"image_uri": "u", "fetched_at": NOW, "status": EMBEDDED, "height": image.shape[0], "width": image.shape[1]}
        for image in images
    ]
    table = pa.Table.from_pylist(rows, schema=DECODED.remove(DECODED.get_field_index("pixels")))
    views = pixel_views(table.append_column("pixels", pixel_column(images)))
    for view, image in zip(views, [image for image in images if image is not None], strict=True):
        assert np.array_equal(view, image)


def test_vectors_that_may_not_enter_an_index() -> None:
    unit = np.full(4, 0.5, np.float32)
    assert is_unit(unit)
    assert not any(is_unit(vector) for vector in (unit * 2, unit * 0, unit * np.nan, unit * np.inf))
