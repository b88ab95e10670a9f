"""What a phone, a street and a careless hand do to a picture: seeded augmentation of whole batches of tensors.

Letters: N images, T side of a tile, H, W = S side of the output; boxes are x0, y0, x1, y1.
"""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from jobs.config import AugmentConfig, SceneAugmentConfig

PAD_FRAC = 0.05  # context around a box, as DetectorConfig.pad_frac
WHITE = 1.0  # Preprocess.pad_value / 255


def uniform(rng: torch.Generator, num: int, low: float, high: float) -> Tensor:
    """(num,) floats between `low` and `high`."""
    return torch.rand(num, generator=rng) * (high - low) + low


def framed(
    tiles_N3TT: Tensor,
    boxes_N4: Tensor,
    size_px: int,
    fit: str,
    degrees_N: Tensor | None = None,
    mirrored_N: Tensor | None = None,
    relight: torch.Generator | None = None,
    strength: float = 1.0,
) -> Tensor:
    """(N, 3, S, S): each box as the encoder's Preprocess(resize=`fit`) shows it, its content turned by `degrees_N`.

    `fit`: "pad" scales the box to fit, centred, white beside it (pad_value=255); "squash" fills the square. Boxes are shares of
    the tile's sides (0..1). `relight` puts the picture under other light (see `relit`), but not the white beside it.
    """
    centres_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    halves_N2 = (boxes_N4[:, 2:] - boxes_N4[:, :2]) / 2
    reaches_N2 = halves_N2 if fit == "squash" else halves_N2.amax(1, keepdim=True).expand(-1, 2)
    ticks = (torch.arange(size_px, device=tiles_N3TT.device) * 2 + 1) / size_px - 1
    u_HW, v_HW = torch.meshgrid(ticks, ticks, indexing="xy")
    offsets_NHW2 = torch.stack([u_HW, v_HW], -1)[None] * reaches_N2[:, None, None, :]
    inside_NHW = (offsets_NHW2.abs() <= halves_N2[:, None, None, :]).all(-1)
    if mirrored_N is not None:
        signs_N = torch.where(mirrored_N, -1.0, 1.0)
        offsets_NHW2 = offsets_NHW2 * torch.stack([signs_N, torch.ones_like(signs_N)], -1)[:, None, None, :]
    if degrees_N is not None:
        turn_N22 = rotations(degrees_N)
        offsets_NHW2 = (offsets_NHW2.flatten(1, 2) @ turn_N22.transpose(1, 2)).view_as(offsets_NHW2)
    grid_NHW2 = (offsets_NHW2 + centres_N2[:, None, None, :]) * 2 - 1
    picture = functional.grid_sample(tiles_N3TT, grid_NHW2, mode="bilinear", padding_mode="border", align_corners=False)
    if relight is not None:
        picture = relit(picture, relight, strength)
    return torch.where(inside_NHW[:, None], picture, WHITE)


def turns(num: int, rng: torch.Generator, rotation_deg: float, quarter_turn_frac: float) -> Tensor:
    """(num,) degrees: up to `rotation_deg` to either side, and 90, 180 or 270 more for `quarter_turn_frac` of them."""
    degrees_N = uniform(rng, num, -rotation_deg, rotation_deg)
    return degrees_N + (uniform(rng, num, 0, 1) < quarter_turn_frac) * 90 * torch.randint(1, 4, (num,), generator=rng)


def padded(boxes_N4: Tensor, frac: float = PAD_FRAC) -> Tensor:
    """Boxes with `frac` of their sides added on each side, cut at the tile's edge (0..1)."""
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    return torch.cat([boxes_N4[:, :2] - frac * sides_N2, boxes_N4[:, 2:] + frac * sides_N2], 1).clamp(0, 1)


def jittered(boxes_N4: Tensor, rng: torch.Generator, frac: float = 0.08) -> Tensor:
    """Boxes as a detector finds them: every edge moved by up to `frac` of the box's side."""
    sides_N4 = (boxes_N4[:, 2:] - boxes_N4[:, :2]).repeat(1, 2)
    moves_N4 = uniform(rng, len(boxes_N4) * 4, -frac, frac).view(-1, 4).to(boxes_N4.device)
    return (boxes_N4 + moves_N4 * sides_N4).clamp(0, 1)


def zoomed(boxes_N4: Tensor, rng: torch.Generator, min_area_frac: float, max_aspect: float = 4 / 3) -> Tensor:
    """A random part of each box, of `min_area_frac` to all of its area: the query holds a part, or from nearer."""
    if min_area_frac == 1:
        return boxes_N4
    num, device = len(boxes_N4), boxes_N4.device
    scales_N = uniform(rng, num, min_area_frac, 1.0)
    aspects_N = torch.exp(uniform(rng, num, -math.log(max_aspect), math.log(max_aspect)))
    shares_N2 = torch.stack([(scales_N * aspects_N).sqrt(), (scales_N / aspects_N).sqrt()], 1).clamp(max=1).to(device)
    origins_N2 = torch.rand(num, 2, generator=rng).to(device) * (1 - shares_N2)
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    starts_N2 = boxes_N4[:, :2] + origins_N2 * sides_N2
    return torch.cat([starts_N2, starts_N2 + shares_N2 * sides_N2], 1)


def darkened(images_N3HW: Tensor, rng: torch.Generator, share: float) -> Tensor:
    """Little light, for `share` of the images: 0.2 to 0.6 of it."""
    factors = torch.where(uniform(rng, len(images_N3HW), 0, 1) < share, uniform(rng, len(images_N3HW), 0.2, 0.6), 1.0)
    return images_N3HW * factors.to(images_N3HW.device)[:, None, None, None]


def noisy(images_N3HW: Tensor, rng: torch.Generator, share: float, largest: float = 0.06) -> Tensor:
    """Sensor noise of up to `largest` standard deviation (of 1), for `share` of the images."""
    num = len(images_N3HW)
    sigmas = torch.where(uniform(rng, num, 0, 1) < share, uniform(rng, num, 0, largest), 0.0)
    noise = torch.randn(images_N3HW.shape, generator=rng) * sigmas[:, None, None, None]
    return (images_N3HW + noise.to(images_N3HW.device)).clamp(0, 1)


def relit(images_N3HW: Tensor, rng: torch.Generator, strength: float = 1.0) -> Tensor:
    """Other light: brightness, contrast, saturation and white balance. No hue turn: colour tells products apart."""
    num, device = len(images_N3HW), images_N3HW.device

    def gain(reach: float, *shape: int) -> Tensor:
        return torch.exp(uniform(rng, num * math.prod(shape), -reach * strength, reach * strength)).view(num, *shape).to(device)

    images = images_N3HW * gain(0.28, 1, 1, 1) * gain(0.06, 3, 1, 1)
    mean_N111 = images.mean((1, 2, 3), keepdim=True)
    images = mean_N111 + (images - mean_N111) * gain(0.22, 1, 1, 1)
    grey_N1HW = images.mean(1, keepdim=True)
    return (grey_N1HW + (images - grey_N1HW) * gain(0.18, 1, 1, 1)).clamp(0, 1)


def erased(images_N3HW: Tensor, rng: torch.Generator, share: float = 0.25, largest: float = 0.15) -> Tensor:
    """A rectangle of 2 % to `largest` of the area in one flat colour, over `share` of the images: a strap, a hand."""
    num, _, height, width = images_N3HW.shape
    areas, aspects = uniform(rng, num, 0.02, largest), torch.exp(uniform(rng, num, -0.9, 0.9))
    hidden = uniform(rng, num, 0, 1) < share
    colours, places = torch.rand(num, 3, 1, 1, generator=rng), torch.rand(num, 2, generator=rng)
    for index in hidden.nonzero().flatten().tolist():
        h = min(height, round(height * math.sqrt(float(areas[index] * aspects[index]))))
        w = min(width, round(width * math.sqrt(float(areas[index] / aspects[index]))))
        top, left = int(places[index, 0] * (height - h)), int(places[index, 1] * (width - w))
        images_N3HW[index, :, top : top + h, left : left + w] = colours[index].to(images_N3HW.device)
    return images_N3HW


def blurred(images_N3HW: Tensor, rng: torch.Generator, share: float = 0.3) -> Tensor:
    """Out of focus or too small, for `share` of the images: shrunk by 1.3 to 3 and enlarged again."""
    num, size = len(images_N3HW), images_N3HW.shape[-2:]
    factors = uniform(rng, num, 1.3, 3.0)
    for index in (uniform(rng, num, 0, 1) < share).nonzero().flatten().tolist():
        small = functional.interpolate(
            images_N3HW[index : index + 1], scale_factor=1 / float(factors[index]), mode="bilinear", antialias=True
        )
        images_N3HW[index] = functional.interpolate(small, size=size, mode="bilinear", align_corners=False)[0]
    return images_N3HW


def compressed(images_N3HW: Tensor, rng: torch.Generator, share: float = 0.3) -> Tensor:
    """JPEG at quality 30 to 90, for `share` of the images (Pillow, on the CPU)."""
    num = len(images_N3HW)
    qualities = uniform(rng, num, 30, 90)
    for index in (uniform(rng, num, 0, 1) < share).nonzero().flatten().tolist():
        pixels = (images_N3HW[index].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        with io.BytesIO() as buffer:
            Image.fromarray(pixels).save(buffer, "JPEG", quality=int(qualities[index]))
            decoded = np.array(Image.open(buffer))
        images_N3HW[index] = torch.from_numpy(decoded).to(images_N3HW.device).permute(2, 0, 1) / 255
    return images_N3HW


def crop_augmented(
    tiles_N3TT: Tensor, boxes_N4: Tensor, size_px: int, fit: str, config: AugmentConfig, rng: torch.Generator
) -> Tensor:
    """Training view of crops, (N, 3, S, S) in 0..1. Boxes as `framed` takes them; what `config` sets to 0 is not done."""
    num, device = len(tiles_N3TT), tiles_N3TT.device
    degrees_N = turns(num, rng, config.rotation_deg, config.quarter_turn_frac)
    mirrored_N = uniform(rng, num, 0, 1) < config.mirror_frac
    boxes_N4 = zoomed(jittered(boxes_N4, rng, config.jitter_frac), rng, config.min_area_frac)
    light = rng if config.relight else None
    images = framed(tiles_N3TT, boxes_N4, size_px, fit, degrees_N.to(device), mirrored_N.to(device), light, config.relight)
    images = erased(darkened(images, rng, config.dark_frac), rng, config.erase_frac, config.erase_max_area)
    return compressed(noisy(blurred(images, rng, config.blur_frac), rng, config.noise_frac), rng, config.jpeg_frac)


def scene_augmented(
    scenes_N3TT: Tensor, boxes: list[Tensor], size_px: int, rng: torch.Generator, config: SceneAugmentConfig
) -> tuple[Tensor, list[Tensor]]:
    """Training view of scenes: a turned window of 0.6 to 1.15 of the scene, mirrored half the time, in other light.

    The scene may be four of them side by side (see `mosaics`).

    Boxes are shares of the sides (0..1), in and out; those with less than `config.min_visible_frac` in the window are dropped.
    Returns (N, 3, S, S) and a list of (M, 4).
    """
    num, device = len(scenes_N3TT), scenes_N3TT.device
    scenes_N3TT, boxes = mosaics(scenes_N3TT, boxes, rng, config.mosaic_frac)
    sides_N2 = (uniform(rng, num, 0.6, 1.15)[:, None] * torch.exp(uniform(rng, num * 2, -0.12, 0.12).view(num, 2))).to(device)
    origins_N2 = torch.rand(num, 2, generator=rng).to(device) * (1 - sides_N2)
    mirrored_N = (uniform(rng, num, 0, 1) < 0.5).to(device)
    turn_N22 = rotations(turns(num, rng, config.rotation_deg, config.quarter_turn_frac).to(device))
    ticks = (torch.arange(size_px, device=device) + 0.5) / size_px - 0.5
    u_HW, v_HW = torch.meshgrid(ticks, ticks, indexing="xy")
    unit_NHW2 = torch.stack([u_HW, v_HW], -1)[None].repeat(num, 1, 1, 1)
    unit_NHW2 = (unit_NHW2.flatten(1, 2) @ turn_N22.transpose(1, 2)).view_as(unit_NHW2) + 0.5
    unit_NHW2[mirrored_N, ..., 0] = 1 - unit_NHW2[mirrored_N, ..., 0]
    grid_NHW2 = (origins_N2[:, None, None] + unit_NHW2 * sides_N2[:, None, None]) * 2 - 1
    images = functional.grid_sample(scenes_N3TT, grid_NHW2, mode="bilinear", padding_mode="zeros", align_corners=False)
    moved = []
    for index, whole_M4 in enumerate(boxes):
        whole_M4 = (whole_M4 - origins_N2[index].repeat(2)) / sides_N2[index].repeat(2)
        if mirrored_N[index]:
            whole_M4 = torch.stack([1 - whole_M4[:, 2], whole_M4[:, 1], 1 - whole_M4[:, 0], whole_M4[:, 3]], 1)
        whole_M4 = turned(whole_M4, turn_N22[index].T)
        cut_M4 = whole_M4.clamp(0, 1)
        visible_M = area(cut_M4) / area(whole_M4).clamp(min=1e-9)
        moved.append(cut_M4[visible_M >= config.min_visible_frac])
    return darkened(items_hidden(relit(images, rng), moved, rng, config.hidden_frac), rng, config.dark_frac), moved


def mosaics(scenes_N3TT: Tensor, boxes: list[Tensor], rng: torch.Generator, share: float) -> tuple[Tensor, list[Tensor]]:
    """For `share` of the scenes, four of the batch at half their size, side by side: small items (arXiv:2004.10934)."""
    if not share:
        return scenes_N3TT, boxes
    half = scenes_N3TT.shape[-1] // 2
    halved = functional.interpolate(scenes_N3TT, size=(half, half), mode="bilinear", antialias=True)
    corners_42 = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    tiled, moved = scenes_N3TT.clone(), list(boxes)
    for index in (uniform(rng, len(boxes), 0, 1) < share).nonzero().flatten().tolist():
        parts = [index, *torch.randint(len(boxes), (3,), generator=rng).tolist()]
        for part, (left, top) in zip(parts, (corners_42 * half).tolist(), strict=True):
            tiled[index, :, top : top + half, left : left + half] = halved[part]
        corners_44 = corners_42.repeat(1, 2).to(scenes_N3TT.device)
        moved[index] = torch.cat([(boxes[part] + corner) / 2 for part, corner in zip(parts, corners_44, strict=True)])
    return tiled, moved


def items_hidden(images_N3HW: Tensor, boxes: list[Tensor], rng: torch.Generator, share: float) -> Tensor:
    """A flat rectangle over 10 to 40 % of `share` of the boxes (0..1), inside them: the boxes stay those of the whole items."""
    scale = torch.tensor(images_N3HW.shape[:1:-1] * 2)
    for index, boxes_M4 in enumerate(boxes):
        for corners in boxes_M4[uniform(rng, len(boxes_M4), 0, 1).to(boxes_M4.device) < share].cpu() * scale:
            area_share, stretch = float(uniform(rng, 1, 0.1, 0.4)), math.exp(float(uniform(rng, 1, -0.5, 0.5)))
            shares = torch.tensor([math.sqrt(area_share) * stretch, math.sqrt(area_share) / stretch]).clamp(max=1)
            sides = (corners[2:] - corners[:2]) * shares
            left, top = (corners[:2] + torch.rand(2, generator=rng) * (corners[2:] - corners[:2] - sides)).round().int().tolist()
            right, bottom = left + round(float(sides[0])), top + round(float(sides[1]))
            images_N3HW[index, :, top:bottom, left:right] = torch.rand(3, 1, 1, generator=rng).to(images_N3HW.device)
    return images_N3HW


def rotations(degrees_N: Tensor) -> Tensor:
    """(N, 2, 2) matrices that turn column vectors by so many degrees, clockwise where y points down."""
    cos, sin = torch.cos(torch.deg2rad(degrees_N)), torch.sin(torch.deg2rad(degrees_N))
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def turned(boxes_M4: Tensor, turn_22: Tensor) -> Tensor:
    """Boxes of items that were turned about the middle of the picture (0.5, 0.5).

    What fills its box's corners needs a wider box, what is round does not: half way between both. A quarter turn is exact.
    """
    centres_M2 = (boxes_M4[:, :2] + boxes_M4[:, 2:]) / 2
    halves_M2 = (boxes_M4[:, 2:] - boxes_M4[:, :2]) / 2
    filled_M2, round_M2 = halves_M2 @ turn_22.abs().T, (halves_M2.square() @ turn_22.square().T).sqrt()
    centres_M2, halves_M2 = (centres_M2 - 0.5) @ turn_22.T + 0.5, (filled_M2 + round_M2) / 2
    return torch.cat([centres_M2 - halves_M2, centres_M2 + halves_M2], 1)


def area(boxes_M4: Tensor) -> Tensor:
    """(M,) areas; 0 where a box is empty."""
    return (boxes_M4[:, 2] - boxes_M4[:, 0]).clamp(min=0) * (boxes_M4[:, 3] - boxes_M4[:, 1]).clamp(min=0)
