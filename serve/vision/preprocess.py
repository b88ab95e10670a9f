"""From RGB pixels to the input of a network: the one implementation, for both sides and for training.

Letters: N images, S side of the square input in pixels.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from serve.vision.spec import Preprocess

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pillow first shrinks by whole steps to this multiple of the goal: 2.0 is "fast", from 3.0 on it equals no gap (Pillow's docs).
REDUCING_GAP = 3.0


def network_input(images: Sequence[np.ndarray], config: Preprocess) -> np.ndarray:
    """(H, W, 3) uint8 RGB images of any size -> (N, 3, S, S) float32: resized, scaled, normalised, in `config.channels` order.

    Raises ValueError when an image has another shape or type.
    """
    side = config.size_px
    factors = np.array([config.scale / std for std in config.std], np.float32)
    shifts = np.array([mean / std for mean, std in zip(config.mean, config.std, strict=True)], np.float32)
    batch_NSS3 = np.empty((len(images), side, side, 3), np.uint8)
    for place, image in enumerate(images):
        batch_NSS3[place] = square(image, config)
    if config.channels == "bgr":
        batch_NSS3 = batch_NSS3[..., ::-1]
    inputs = np.ascontiguousarray(batch_NSS3.transpose(0, 3, 1, 2), np.float32)
    inputs *= factors[:, None, None]
    inputs -= shifts[:, None, None]
    return inputs


def square(image: np.ndarray, config: Preprocess) -> np.ndarray:
    """(H, W, 3) uint8 -> (S, S, 3) uint8, resized as `config.resize` says."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image of shape {image.shape} and type {image.dtype}: expected (H, W, 3) uint8, not empty")
    height, width = image.shape[:2]
    side, picture = config.size_px, Image.fromarray(image)
    resample = FILTERS[config.filter]
    if config.resize == "squash":
        return np.asarray(picture.resize((side, side), resample, reducing_gap=REDUCING_GAP))
    if config.resize == "shorter_side_crop":
        # The centre crop of the resized picture, cut before it is resized: the same pixels for less work.
        kept = min(width, height) * min(1.0, side / (config.resize_px or side * 8 / 7))
        left, top = (width - kept) / 2, (height - kept) / 2
        box = (left, top, left + kept, top + kept)
        return np.asarray(picture.resize((side, side), resample, box=box, reducing_gap=REDUCING_GAP))
    scaled, (left_px, top_px) = padded_size(width, height, config), pad_offset(width, height, config)
    padded = np.full((side, side, 3), config.pad_value, np.uint8)
    resized = picture.resize(scaled, resample, reducing_gap=REDUCING_GAP)
    padded[top_px : top_px + scaled[1], left_px : left_px + scaled[0]] = np.asarray(resized)
    return padded


def padded_size(width: int, height: int, config: Preprocess) -> tuple[int, int]:
    """(width, height) of the picture inside the padded square."""
    ratio = config.size_px / max(width, height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def pad_offset(width: int, height: int, config: Preprocess) -> tuple[int, int]:
    """(x, y) of the picture's top left corner inside the padded square."""
    if config.pad_at == "top_left":
        return 0, 0
    scaled = padded_size(width, height, config)
    return (config.size_px - scaled[0]) // 2, (config.size_px - scaled[1]) // 2


def boxes_in_image(boxes_N4: np.ndarray, width: int, height: int, config: Preprocess) -> np.ndarray:
    """Boxes in pixels of the network's input -> pixels of the width x height image: (N, 4) float32, not clipped.

    For the resize modes that keep the whole picture: squash and pad.
    """
    assert config.resize != "shorter_side_crop", "a detector sees the whole picture"
    if config.resize == "squash":
        scaled, offset = (config.size_px, config.size_px), (0, 0)
    else:
        scaled, offset = padded_size(width, height, config), pad_offset(width, height, config)
    ratios = np.array([width / scaled[0], height / scaled[1]] * 2, np.float32)
    return ((boxes_N4 - np.array(offset * 2, np.float32)) * ratios).astype(np.float32)
