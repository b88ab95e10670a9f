"""Studio photos and cutouts: same bytes for a seed, tight boxes, near-white ground."""

import numpy as np
import pytest

from jobs.render.products import make_products
from jobs.render.studio import NUM_VIEWS, cutout, studio_photo


def test_same_product_same_bytes() -> None:
    first, again = make_products(6, 3), make_products(6, 3)
    for one, two in zip(first, again, strict=True):
        for view in range(NUM_VIEWS):
            assert studio_photo(one, view, 96).tobytes() == studio_photo(two, view, 96).tobytes()


def test_views_differ_and_have_the_asked_size() -> None:
    for product in make_products(10, 5):
        photos = [studio_photo(product, view, 120) for view in range(NUM_VIEWS)]
        assert all(photo.shape == (120, 120, 3) and photo.dtype == np.uint8 for photo in photos)
        assert all(np.abs(photos[0].astype(int) - other).mean() > 2 for other in photos[1:])


def test_ground_is_near_white() -> None:
    for product in make_products(20, 5):
        assert studio_photo(product, 0, 96)[:3].mean() > 215


def test_cutout_is_a_tight_box() -> None:
    for product in make_products(40, 9):
        for view in range(NUM_VIEWS):
            picture = cutout(product, view, 100)
            assert max(picture.shape[:2]) == 100 and picture.shape[2] == 4
            alpha = picture[..., 3] > 0
            rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
            assert rows[0] <= 2 and columns[0] <= 2
            assert rows[-1] >= picture.shape[0] - 3 and columns[-1] >= picture.shape[1] - 3


def test_unknown_view_is_an_error() -> None:
    with pytest.raises(ValueError, match="view=3"):
        cutout(make_products(1, 1)[0], 3, 64)
