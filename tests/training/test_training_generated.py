"""The rendered training photos: complete, repeatable, and boxes where the items are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.training.crops import PLAIN, SHOP, USER, tile_of
from jobs.training.generated import Split, columns, load_crops, load_scenes, part_path, render_part, render_split


def test_every_product_is_seen_in_every_domain(tiny_split: Split, tiny_photos: Path) -> None:
    crops = load_crops(tiny_split, tiny_photos)
    assert len(crops.tiles_NTT3) == len(crops.boxes_N4) == len(crops.products_N) == len(crops.domains_N)
    assert crops.tiles_NTT3.shape[1:] == (64, 64, 3)
    for domain, share in ((SHOP, 3), (PLAIN, 2)):
        np.testing.assert_array_equal(np.bincount(crops.products_N[crops.domains_N == domain]), share)
    assert (crops.domains_N == USER).sum() >= tiny_split.num_scenes
    assert (crops.boxes_N4[:, :2] < crops.boxes_N4[:, 2:]).all()
    assert crops.boxes_N4.min() >= 0
    assert crops.boxes_N4.max() <= 1


def test_scenes_have_their_boxes(tiny_split: Split, tiny_photos: Path) -> None:
    scenes = load_scenes(tiny_split, tiny_photos)
    assert scenes.streets_M.sum() == tiny_split.num_scenes
    assert len(scenes.boxes) == len(scenes.scenes_MSS3)
    assert all(len(boxes) == 1 for boxes, street in zip(scenes.boxes, scenes.streets_M, strict=True) if not street)
    assert all(len(boxes) >= 1 and boxes.min() >= 0 and boxes.max() <= 1 for boxes in scenes.boxes)


def test_plain_boxes_hold_all_that_is_not_ground(tiny_split: Split, tiny_photos: Path) -> None:
    scenes = load_scenes(tiny_split, tiny_photos)
    for pixels, boxes, street in zip(scenes.scenes_MSS3, scenes.boxes, scenes.streets_M, strict=True):
        if street:
            continue
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        rows, columns = np.nonzero(np.abs(pixels.astype(int) - ground).max(axis=2) > 60)
        x0, y0, x1, y1 = boxes[0] * len(pixels)
        if len(rows) and (x1 - x0) * (y1 - y0) < 0.4 * pixels[..., 0].size:  # else the item is the median
            assert x0 <= columns.min() and columns.max() < x1 and y0 <= rows.min() and rows.max() < y1


def test_same_split_same_pixels_and_another_seed_other_products(tiny_split: Split) -> None:
    small = replace(tiny_split, num_products=4, num_scenes=2)
    first, second, other = render_part(small, 0), render_part(small, 0), render_part(replace(small, seed=7), 0)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert not np.array_equal(first["tiles"][:5], other["tiles"][:5])


def test_tile_keeps_context_and_says_where_the_box_is() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[10:30, 60:100] = 200
    tile, box = tile_of(pixels, np.array([60, 10, 100, 30], np.float32), 54)
    x0, y0, x1, y1 = (box * 54).round().astype(int)
    assert (x1 - x0, y1 - y0) == (40, 20)
    assert tile[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].min() > 190
    assert tile[: y0 - 1].max() < 10


def test_a_split_that_is_not_done_is_not_loaded(tiny_split: Split, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no done\.json"):
        load_crops(tiny_split, tmp_path)


def test_ray_renders_what_is_missing(ray_local: None, tiny_split: Split, tiny_photos: Path, tmp_path: Path) -> None:
    small = replace(tiny_split, num_products=4, num_scenes=2)
    folder = render_split(small, tmp_path)
    done_at = (folder / "done.json").stat().st_mtime_ns
    assert render_split(small, tmp_path) == folder
    assert (folder / "done.json").stat().st_mtime_ns == done_at, "a finished split is left alone"
    assert load_crops(small, tmp_path).tiles_NTT3.shape[0] > 4 * 5


def test_parts_are_joined_in_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [{"tiles": rng.integers(0, 255, (num, 4, 4, 3), np.uint8), "rows": rng.integers(0, 9, num)} for num in (3, 1, 2)]
    for number, part in enumerate(parts):
        np.savez(part_path(tmp_path, number), allow_pickle=False, **part)
    with pytest.raises(FileNotFoundError, match="render the split first"):
        columns(tmp_path, "tiles")
    (tmp_path / "done.json").write_text("{}")
    for name, joined in zip(("rows", "tiles"), columns(tmp_path, "rows", "tiles"), strict=True):
        np.testing.assert_array_equal(joined, np.concatenate([part[name] for part in parts]))
        assert joined.dtype == parts[0][name].dtype
