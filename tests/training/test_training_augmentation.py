"""Augmentation: the encoder sees the serving side's picture, and boxes move with what they hold."""

from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.config import AugmentConfig, SceneAugmentConfig
from jobs.training.augmentation import (
    crop_augmented,
    erased,
    framed,
    items_hidden,
    jittered,
    mosaics,
    padded,
    relit,
    rotations,
    scene_augmented,
    turned,
    zoomed,
)
from serve.vision.preprocess import square
from serve.vision.spec import Preprocess

EVERYTHING = AugmentConfig(quarter_turn_frac=0.5, mirror_frac=0.5, min_area_frac=0.4, dark_frac=0.5, noise_frac=0.5)
NOTHING = AugmentConfig(rotation_deg=0, jitter_frac=0, relight=0, erase_frac=0, blur_frac=0, jpeg_frac=0)


def smooth_picture(side_px: int) -> np.ndarray:
    """A picture without fine detail, so that two resize filters agree."""
    rng = np.random.default_rng(0)
    return np.asarray(
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((side_px, side_px), Image.Resampling.BICUBIC)
    )


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("box", [(20, 30, 100, 70), (10, 10, 50, 110), (0, 0, 160, 160)])
def test_a_frame_is_the_serving_side_of_the_same_crop(box: tuple[int, int, int, int], fit: Literal["pad", "squash"]) -> None:
    pixels = smooth_picture(160)
    x0, y0, x1, y1 = box
    served = square(pixels[y0:y1, x0:x1], Preprocess(size_px=64, resize=fit, pad_value=255))
    trained = framed(as_tensor(pixels), torch.tensor([box]) / 160, 64, fit)[0].permute(1, 2, 0).numpy() * 255
    difference = np.abs(trained - served)
    assert np.median(difference) < 1.5
    assert difference.mean() < 4.0  # the edge of the white may lie one pixel off


def test_light_leaves_the_white_beside_a_crop() -> None:
    rng = torch.Generator().manual_seed(1)
    image = framed(as_tensor(smooth_picture(64)), torch.tensor([[0.4, 0.0, 0.6, 1.0]]), 32, "pad", relight=rng)
    assert bool((image[..., 0] == 1).all())
    assert not bool((image[..., 16] == 1).all())


def test_crops_stay_in_range_and_follow_the_seed() -> None:
    tiles = as_tensor(smooth_picture(64)).repeat(8, 1, 1, 1)
    boxes = torch.tensor([[0.2, 0.2, 0.8, 0.7]]).repeat(8, 1)
    first, second, other = (
        crop_augmented(tiles, boxes, 32, "pad", EVERYTHING, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert first.shape == (8, 3, 32, 32)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    torch.testing.assert_close(first, second)
    assert not torch.equal(first, other)


def test_padding_and_jitter_stay_inside_the_tile() -> None:
    boxes = torch.tensor([[0.0, 0.1, 0.5, 0.6], [0.4, 0.4, 1.0, 1.0]])
    torch.testing.assert_close(padded(boxes, 0.1), torch.tensor([[0.0, 0.05, 0.55, 0.65], [0.34, 0.34, 1.0, 1.0]]))
    moved = jittered(boxes, torch.Generator().manual_seed(0))
    assert bool(((moved >= 0) & (moved <= 1)).all())
    assert float((moved - boxes).abs().max()) <= 0.08 * 0.6 + 1e-6


@pytest.mark.parametrize(
    "config", [SceneAugmentConfig(), SceneAugmentConfig(quarter_turn_frac=1)], ids=["upright", "quarter turns"]
)
def test_scene_boxes_move_with_their_items(config: SceneAugmentConfig) -> None:
    scenes = torch.zeros(6, 3, 80, 80)
    scenes[:, 0, 20:50, 30:60] = 1.0
    boxes = [torch.tensor([[30 / 80, 20 / 80, 60 / 80, 50 / 80]])] * 6
    images, moved = scene_augmented(scenes, boxes, 64, torch.Generator().manual_seed(2), config)
    assert sum(len(found) for found in moved) >= 4
    for image, found in zip(images, moved, strict=True):
        for box in found * 64:
            rows, columns = torch.nonzero(image[0] > image[0].max() / 2, as_tuple=True)
            seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert float((seen - box).abs().max()) <= 1.5


def test_four_scenes_of_one_keep_their_items_in_their_boxes() -> None:
    scenes, boxes = torch.zeros(6, 3, 80, 80), []
    for index in range(6):
        left, top = 8 * index, 40 - 4 * index
        scenes[index, 0, top : top + 20, left : left + 32] = 1.0
        boxes.append(torch.tensor([[left, top, left + 32, top + 20]]) / 80)
    tiled, moved = mosaics(scenes, boxes, torch.Generator().manual_seed(0), 1.0)
    for image, found in zip(tiled, moved, strict=True):
        drawn = torch.zeros(80, 80)
        for left, top, right, bottom in (found * 80).round().int().tolist():
            assert (right - left, bottom - top) == (16, 10)
            drawn[top:bottom, left:right] = 1
        torch.testing.assert_close(image[0].round(), drawn)
    assert [len(found) for found in moved] == [4] * 6
    untouched, same = mosaics(scenes, boxes, torch.Generator().manual_seed(0), 0.0)
    torch.testing.assert_close((untouched, same), (scenes, boxes))


def test_the_box_of_a_turned_item_is_between_a_filled_and_a_round_one() -> None:
    box = torch.tensor([[0.4, 0.1, 0.6, 0.2]])
    quarter = turned(box, rotations(torch.tensor([90.0]))[0])
    torch.testing.assert_close(quarter, torch.tensor([[0.8, 0.4, 0.9, 0.6]]))
    eighth = turned(torch.tensor([[0.4, 0.4, 0.6, 0.6]]), rotations(torch.tensor([45.0]))[0])
    side = 0.1 * (1 + 2**0.5) / 2
    torch.testing.assert_close(eighth, torch.tensor([[0.5 - side, 0.5 - side, 0.5 + side, 0.5 + side]]))


def test_hidden_items_keep_their_boxes() -> None:
    white, whole = torch.ones(32, 3, 64, 64), [torch.tensor([[0.2, 0.3, 0.8, 0.7]])] * 32
    covered = items_hidden(white.clone(), whole, torch.Generator().manual_seed(0), 1.0) < 1
    covered_N = covered.any(1)[:, 19:45, 12:51].float().mean((1, 2))
    assert bool(((covered_N > 0.08) & (covered_N < 0.42)).all())
    assert not covered[:, :, :18].any() and not covered[:, :, 46:].any(), "nothing beside the item is covered"
    torch.testing.assert_close(items_hidden(white.clone(), whole, torch.Generator().manual_seed(0), 0.0), white)


def test_items_outside_the_window_are_dropped() -> None:
    sliver = [torch.tensor([[0.0, 0.0, 0.04, 0.04]])] * 16
    _, moved = scene_augmented(torch.zeros(16, 3, 32, 32), sliver, 32, torch.Generator().manual_seed(0), SceneAugmentConfig())
    assert 0 < sum(len(found) for found in moved) < 16


def test_light_turns_no_hue() -> None:
    grey_red = torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1).repeat(32, 1, 4, 4)
    lit = relit(grey_red, torch.Generator().manual_seed(0))
    assert bool((lit[:, 0] > lit[:, 1:].amax(1)).all()), "red stays the strongest channel"


def test_what_is_switched_off_is_not_done() -> None:
    tiles, boxes = as_tensor(smooth_picture(64)), torch.tensor([[0.2, 0.2, 0.8, 0.7]])
    untouched = crop_augmented(tiles, boxes, 32, "squash", NOTHING, torch.Generator().manual_seed(0))
    torch.testing.assert_close(untouched, framed(tiles, boxes, 32, "squash"))
    for switch in (
        {"mirror_frac": 1.0},
        {"quarter_turn_frac": 1.0},
        {"dark_frac": 1.0},
        {"min_area_frac": 0.2},
        {"noise_frac": 1.0},
    ):
        changed = crop_augmented(tiles, boxes, 32, "squash", NOTHING.model_copy(update=switch), torch.Generator().manual_seed(3))
        assert not torch.allclose(changed, untouched, atol=1e-3), switch


def test_a_mirrored_frame_is_the_frame_mirrored() -> None:
    tiles, boxes = as_tensor(smooth_picture(64)), torch.tensor([[0.2, 0.1, 0.8, 0.7]])
    plain, mirrored = (framed(tiles, boxes, 32, "squash", mirrored_N=torch.tensor([m])) for m in (False, True))
    torch.testing.assert_close(mirrored, plain.flip(3), atol=1e-4, rtol=0)


def test_a_zoomed_box_lies_in_its_box() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.9, 0.6]]).repeat(50, 1)
    parts = zoomed(boxes, torch.Generator().manual_seed(0), 0.3)
    assert bool((parts[:, :2] >= boxes[:, :2] - 1e-6).all()) and bool((parts[:, 2:] <= boxes[:, 2:] + 1e-6).all())
    shares = (parts[:, 2:] - parts[:, :2]).prod(1) / 0.32
    assert float(shares.min()) > 0.25 and float(shares.max()) <= 1 + 1e-6


def test_hidden_rectangles_are_as_large_as_they_may() -> None:
    images = -torch.ones(400, 3, 20, 20)
    hidden_N = (erased(images, torch.Generator().manual_seed(3), 1.0, 0.4) >= 0).all(1).float().mean((1, 2))
    assert 0.35 < hidden_N.max() < 0.45 and hidden_N.min() < 0.05
