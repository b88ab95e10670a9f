"""Scenes: truth that fits the pixels, limits that are kept, options that fix what they name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.render.camera import CLEAN
from jobs.render.grounds import GROUNDS
from jobs.render.products import make_products
from jobs.render.scenes import Scene, box_of, street_scene

PRODUCTS = make_products(60, 7)


def scene_of(seed: int, num: int, **options: object) -> Scene:
    rng = np.random.default_rng(seed)
    chosen = [PRODUCTS[i] for i in rng.choice(len(PRODUCTS), num, replace=False)]
    return street_scene(chosen, rng, 160, **options)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(1, 4))
def test_truth_fits_the_pixels(seed: int, num: int) -> None:
    scene = scene_of(seed, num)
    assert scene.pixels.shape == (160, 160, 3) and scene.pixels.dtype == np.uint8
    assert 1 <= len(scene.product_ids) <= num
    assert len(scene.product_ids) == len(scene.boxes_N4) == len(scene.occluded_frac_N) == len(scene.categories)
    assert (scene.boxes_N4[:, :2] >= 0).all() and (scene.boxes_N4[:, 2:] <= 160).all()
    assert (scene.boxes_N4[:, 2:] > scene.boxes_N4[:, :2]).all()
    for row, box in enumerate(scene.boxes_N4):
        np.testing.assert_array_equal(box, box_of(scene.owner_HW == row))
    assert scene.boxes_N4.dtype == np.float32
    assert (scene.occluded_frac_N >= 0).all() and (scene.occluded_frac_N <= 0.4 + 1e-6).all()


def test_same_seed_same_bytes() -> None:
    first, again = scene_of(5, 3), scene_of(5, 3)
    assert first.pixels.tobytes() == again.pixels.tobytes()
    np.testing.assert_array_equal(first.boxes_N4, again.boxes_N4)


def test_options_fix_light_turn_and_cover() -> None:
    for seed in range(8):
        scene = scene_of(
            seed, 1, max_rotation_deg=0.0, max_tilt=0.0, max_occluded_frac=0.0, num_clutter=(0, 0), view=0, camera=CLEAN
        )
        assert scene.occluded_frac_N.tolist() == [0.0]
        side = scene_of(seed, 1, side_frac=(0.5, 0.5), max_rotation_deg=0.0, max_tilt=0.0, num_clutter=(0, 0)).boxes_N4[0]
        assert abs(max(side[2] - side[0], side[3] - side[1]) - 80) <= 3


def test_product_is_where_the_box_says() -> None:
    """With a clean camera, the pixels of the box differ from those of the same ground without the product."""
    rng = np.random.default_rng(11)
    with_product = street_scene([PRODUCTS[0]], rng, 160, num_clutter=(0, 0), camera=CLEAN)
    ground = GROUNDS[int((again := np.random.default_rng(11)).integers(len(GROUNDS)))](again, 160)
    differs = np.abs(with_product.pixels.astype(int) - np.asarray(ground)).max(axis=2) > 40
    mask = with_product.owner_HW == 0
    assert differs[mask].mean() > 0.7 and differs[~mask].mean() < 0.05


def test_number_of_products_is_limited() -> None:
    with pytest.raises(ValueError, match="1 to 4"):
        street_scene(PRODUCTS[:5], np.random.default_rng(0), 160)
    with pytest.raises(ValueError, match="1 to 4"):
        street_scene([], np.random.default_rng(0), 160)
