"""Distortions: each does one thing, to the degree it says, the same every time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.config import JobError
from jobs.evaluation.queries import Query
from jobs.evaluation.robustness import (
    DISTORTIONS,
    UNCHANGED,
    Variant,
    curve_variants,
    distorted,
    parse_variant,
    write_distorted,
)
from serve.vision.spec import DecodeLimits

BOX = (40.0, 30.0, 100.0, 70.0)


def photo() -> np.ndarray:
    """A smooth ground with a bright red item in BOX: (120, 160, 3)."""
    y, x = np.mgrid[:120, :160]
    pixels = np.stack([60 + x / 4, 60 + y / 4, 90 + 0 * x], axis=2).astype(np.uint8)
    pixels[30:70, 40:100] = (250, 20, 20)
    return pixels


def red_box(pixels: np.ndarray) -> list[int]:
    """Where the item is seen."""
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 90)
    columns, rows = np.flatnonzero(red.any(axis=0)), np.flatnonzero(red.any(axis=1))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("variant", curve_variants(tuple(DISTORTIONS)), ids=str)
def test_same_seed_same_pixels_and_the_photo_is_not_touched(variant: Variant) -> None:
    before = photo()
    pixels, boxes = distorted(before, (BOX,), variant, "a.jpg", 3)
    again, _ = distorted(photo(), (BOX,), variant, "a.jpg", 3)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and np.array_equal(pixels, again)
    assert np.array_equal(before, photo()) and boxes.shape == (1, 4)
    assert (variant == UNCHANGED) == np.array_equal(pixels, before)


@pytest.mark.parametrize("kind", [kind for kind in DISTORTIONS if kind != "jpeg"])
def test_the_first_level_changes_nothing(kind: str) -> None:
    pixels, boxes = distorted(photo(), (BOX,), Variant(kind, DISTORTIONS[kind].levels[0]), "a", 0)
    assert np.array_equal(pixels, photo()) and tuple(boxes[0]) == BOX


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_quarter_turns_are_exact(degrees: int) -> None:
    pixels, boxes = distorted(photo(), (BOX,), Variant("rotation", degrees), "a", 0)
    assert np.array_equal(pixels, np.rot90(photo(), degrees // 90))
    assert boxes[0] == pytest.approx(red_box(pixels))


@pytest.mark.parametrize("degrees", [15, 45, 120, 200, 345])
def test_any_turn_keeps_the_whole_photo_and_its_box_in_place(degrees: int) -> None:
    pixels, boxes = distorted(photo(), (BOX,), Variant("rotation", degrees), "a", 0)
    seen, box = np.array(red_box(pixels)), boxes[0]
    assert pixels.shape[0] >= 119 or pixels.shape[1] >= 119
    assert (box[:2] + box[2:]) / 2 == pytest.approx((seen[:2] + seen[2:]) / 2, abs=1.5)
    assert (box[2:] - box[:2] <= seen[2:] - seen[:2] + 1).all()  # the ellipse lies inside the rectangle
    assert ((box[2:] - box[:2]) / (seen[2:] - seen[:2]) > 0.7).all()


@pytest.mark.parametrize("frac", [0.1, 0.3, 0.6])
def test_occlusion_hides_that_share_of_the_box_and_nothing_else(frac: float) -> None:
    for name in ("a", "b", "c"):
        pixels, _ = distorted(photo(), (BOX,), Variant("occlusion", frac), name, 5)
        changed = (pixels != photo()).any(axis=2)
        assert changed[30:70, 40:100].mean() == pytest.approx(frac, abs=0.04)
        assert changed.sum() == changed[30:70, 40:100].sum()
    whole, _ = distorted(photo(), (), Variant("occlusion", frac), "a", 5)
    assert (whole != photo()).any(axis=2).mean() == pytest.approx(frac, abs=0.03)


def test_a_quarter_of_the_light_is_half_the_value_of_a_bright_pixel() -> None:
    """In linear light; 255 at a quarter is 137 in sRGB, as published tables have it."""
    white = np.full((20, 20, 3), 255, np.uint8)
    assert (distorted(white, (), Variant("light", 0.25), "a", 0)[0] == 137).all()


def test_more_blur_noise_and_compression_are_further_away() -> None:
    def error(kind: str, level: float) -> float:
        pixels, _ = distorted(photo(), (), Variant(kind, level), "a", 0)
        return float(np.abs(pixels.astype(float) - photo()).mean())

    for kind in ("blur", "noise", "jpeg"):
        errors = [error(kind, level) for level in DISTORTIONS[kind].levels]
        assert errors == sorted(errors), kind


def test_names() -> None:
    assert parse_variant("none") == UNCHANGED and parse_variant("light=0.25") == Variant("light", 0.25)
    assert str(parse_variant("rotation=45")) == "rotation=45"
    for text in ("fog=1", "light", "light=bright", "light=nan"):
        with pytest.raises(ValueError, match="is no distortion; allowed: none, rotation=LEVEL"):
            parse_variant(text)


def test_distorted_photos_are_queries_again(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    variant, folder = Variant("rotation", 90), tmp_path / "turned"
    folder.mkdir()
    queries = [Query(tmp_path / "a.png", ("p",), (BOX,)), Query(tmp_path / "a.png", ("q",))]
    boxed, plain = write_distorted(queries, variant, folder, 0, DecodeLimits())
    assert np.abs(np.asarray(Image.open(boxed.path)).astype(int) - np.rot90(photo())).mean() < 3
    assert (boxed.product_ids, plain.product_ids, plain.boxes_N4) == (("p",), ("q",), ())
    assert boxed.boxes_N4[0] == pytest.approx((30, 60, 70, 120))
    with pytest.raises(JobError, match=r"missing\.png"):
        write_distorted([Query(tmp_path / "missing.png", ("p",))], variant, folder, 0, DecodeLimits())
