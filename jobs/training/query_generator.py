"""User-like photos made out of catalog photos alone: the item is cut out of its plain ground and put on a busy one.

Relighting, hiding, turning, blur and compression come after it, by the encoder's ordinary augmentation.
Letters: T side of a tile.
"""

from functools import cached_property

import numpy as np
from PIL import Image
from scipy import ndimage

from jobs.render.grounds import busy_ground
from jobs.training.crops import SHOP, CropSet

NUM_GROUNDS = 96  # drawn once; each is used in many windows
GROUND_FACTOR = 2  # side of a ground, in tiles
PLAIN_TOLERANCE = 18  # of 255: how far plain ground may be from the corner's colour (JPEG noise, soft shadows)
MIN_ITEM_FRAC = 0.03  # a smaller cut-out is a failure: the photo is then used as it is
PILE_FRAC = 0.35  # share of queries that show several copies, as crates and shelves do


class QueryGenerator:
    """Makes queries of the SHOP crops of a set. Cut-outs are made when they are first asked for, and kept."""

    def __init__(self, crops: CropSet, seed: int) -> None:
        self.crops, self.seed = crops, seed
        self.side = crops.tiles_NTT3.shape[1]
        self.masks: dict[int, np.ndarray | None] = {}
        self.shop = np.flatnonzero(crops.domains_N == SHOP)

    @cached_property
    def grounds(self) -> list[Image.Image]:
        """Busy grounds, GROUND_FACTOR * T wide."""
        rng = np.random.default_rng([self.seed, 3])
        return [busy_ground(rng, self.side * GROUND_FACTOR) for _ in range(NUM_GROUNDS)]

    def query(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(T, T, 3) uint8: crop `row` as part of a busy photo, and the box (0..1) that shows it."""
        item = self.cutout(row)
        if item is None:
            return self.crops.tiles_NTT3[row], self.crops.boxes_N4[row]
        canvas = self.ground(rng)
        for _ in range(int(rng.integers(0, 3))):  # other goods behind it
            if (other := self.cutout(int(rng.choice(self.shop)))) is not None:
                paste(canvas, other, self.side * rng.uniform(0.25, 0.6), rng, free=True)
        copies = int(rng.integers(2, 8)) if rng.random() < PILE_FRAC else 1
        for _ in range(copies):
            reach = rng.uniform(0.45, 1.0) if copies == 1 else rng.uniform(0.35, 0.6)
            paste(canvas, item, self.side * reach, rng, free=copies > 1)
        return np.asarray(canvas), np.array([0, 0, 1, 1], np.float32)

    def ground(self, rng: np.random.Generator) -> Image.Image:
        """A window of a busy ground, (T, T)."""
        ground = self.grounds[int(rng.integers(len(self.grounds)))]
        window = int(self.side * rng.uniform(0.5, GROUND_FACTOR))
        left, top = (int(rng.integers(ground.width - window + 1)) for _ in range(2))
        return ground.crop((left, top, left + window, top + window)).resize((self.side, self.side), Image.Resampling.BILINEAR)

    def cutout(self, row: int) -> Image.Image | None:
        """The item of crop `row` as RGBA, cropped to it; None where its ground is not plain."""
        if row not in self.masks:
            self.masks[row] = item_mask(self.crops.tiles_NTT3[row])
        mask = self.masks[row]
        if mask is None:
            return None
        ys, xs = np.nonzero(mask)
        window = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
        alpha = Image.fromarray((mask[window] * 255).astype(np.uint8))
        item = Image.fromarray(self.crops.tiles_NTT3[row][window])
        item.putalpha(alpha)
        return item


def item_mask(tile_TT3: np.ndarray) -> np.ndarray | None:
    """(T, T) bool: what is not plain ground joined to the border; None where there is no plain ground, or nothing on it."""
    corners = np.concatenate([tile_TT3[:3, :3], tile_TT3[:3, -3:], tile_TT3[-3:, :3], tile_TT3[-3:, -3:]]).reshape(-1, 3)
    colour = np.median(corners, axis=0)
    plain = np.abs(tile_TT3.astype(np.int16) - colour).max(axis=2) <= PLAIN_TOLERANCE
    labels, _ = ndimage.label(plain)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    mask = ~np.isin(labels, border[border > 0])
    share = mask.mean()
    return mask if MIN_ITEM_FRAC <= share <= 0.95 else None


def paste(canvas: Image.Image, item: Image.Image, longest_px: float, rng: np.random.Generator, *, free: bool) -> None:
    """Puts `item` on `canvas`, turned a little; `free`: anywhere, even partly outside, else near the middle."""
    scale = longest_px / max(item.size)
    size = (max(4, round(item.width * scale)), max(4, round(item.height * scale)))
    turned = item.resize(size, Image.Resampling.BILINEAR).rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR, expand=True)
    spread = 0.45 if free else 0.15
    x, y = (canvas.width * (0.5 + rng.uniform(-spread, spread)) for _ in range(2))
    canvas.paste(turned.convert("RGB"), (round(x - turned.width / 2), round(y - turned.height / 2)), turned.getchannel("A"))
