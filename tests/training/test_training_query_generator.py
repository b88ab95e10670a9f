"""Queries made out of catalog photos: the item is really cut out, and lies on another ground."""

import numpy as np
from PIL import Image, ImageDraw

from jobs.training.crops import SHOP, USER, CropSet, TrainingProduct
from jobs.training.query_generator import QueryGenerator, item_mask


def on_white(colour: tuple[int, int, int], px: int = 64) -> np.ndarray:
    """A ring on white ground: its hole is ground that does not touch the border."""
    picture = Image.new("RGB", (px, px), "white")
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=colour)
    ImageDraw.Draw(picture).ellipse((28, 28, 36, 36), fill="white")
    return np.asarray(picture)


def test_the_mask_is_the_item_and_what_it_encloses() -> None:
    mask = item_mask(on_white((200, 30, 30)))
    assert mask is not None
    assert mask[32, 20] and mask[32, 32] and not mask[4, 4]
    assert 0.15 < mask.mean() < 0.25


def test_a_photo_without_plain_ground_is_left_as_it_is() -> None:
    busy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert item_mask(busy) is None
    crops = CropSet(
        busy[None], np.array([[0, 0, 1, 1]], np.float32), np.array([0]), np.array([SHOP]), (TrainingProduct("a", "a", None),)
    )
    tile, box = QueryGenerator(crops, 0).query(0, np.random.default_rng(0))
    np.testing.assert_array_equal(tile, busy)
    np.testing.assert_array_equal(box, [0, 0, 1, 1])


def test_a_query_shows_the_item_on_busy_ground_and_follows_the_seed() -> None:
    tiles = np.stack([on_white((220, 20, 20)), on_white((20, 20, 220))])
    products = (TrainingProduct("a", "a", None), TrainingProduct("b", "b", None))
    crops = CropSet(tiles, np.array([[0, 0, 1, 1]] * 2, np.float32), np.arange(2), np.full(2, SHOP), products)
    generator = QueryGenerator(crops, 5)
    queries = [generator.query(0, np.random.default_rng(seed))[0] for seed in range(6)]
    for query in queries:
        red = (query[..., 0] > 180) & (query[..., 1] < 70) & (query[..., 2] < 70)
        assert query.shape == (64, 64, 3) and red.mean() > 0.01
        assert (query == 255).all(axis=2).mean() < 0.5, "the white ground is gone"
    np.testing.assert_array_equal(queries[3], generator.query(0, np.random.default_rng(3))[0])
    assert not np.array_equal(queries[0], queries[1])


def test_a_query_may_lie_on_a_photo_by_a_user() -> None:
    green = np.full((64, 64, 3), (20, 200, 20), np.uint8)
    products = (TrainingProduct("a", "a", None), TrainingProduct("b", "b", None))
    boxes = np.array([[0, 0, 1, 1]] * 2, np.float32)
    crops = CropSet(np.stack([on_white((220, 20, 20)), green]), boxes, np.arange(2), np.array([SHOP, USER]), products)
    for seed in range(6):
        query = QueryGenerator(crops, 5, user_ground_frac=1.0).query(0, np.random.default_rng(seed))[0]
        beside = (query[..., 1] > 180) & (query[..., 0] < 40)
        item = (query[..., 0] > 60) & (query[..., 1] < 60)
        assert item.any() and (beside.any() or item.mean() > 0.9)
