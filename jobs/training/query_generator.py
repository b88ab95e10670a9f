"""User-like photos made out of catalog photos alone: the item is cut out of its plain ground and put where people photograph it.

Held in a hand before other goods, in a pile or crate, or in a row on a shelf. Relighting, hiding, turning, blur and compression
come after it, by the encoder's ordinary augmentation.
Letters: T side of a tile.
"""

from functools import cached_property

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage

from jobs.render.grounds import busy_ground
from jobs.training.crops import SHOP, USER, CropSet

NUM_GROUNDS = 96  # drawn once; each is used in many windows
GROUND_FACTOR = 2  # side of a ground, in tiles
DRAWN_FRAC = 0.25  # share of grounds that are drawn; the others are made of the catalog's goods
PLAIN_TOLERANCE = 12  # of 255: how far plain ground may be from the corner's colour (JPEG noise, soft shadows)
CLOSING_FRAC = 0.05  # of the tile's side: gaps of the item that are no wider are filled (white print on a white ground)
MIN_ITEM_FRAC = 0.03  # a smaller cut-out is a failure: the photo is then used as it is
SCENES = ("held", "pile", "row")


class QueryGenerator:
    """Makes queries of the SHOP crops of a set. Cut-outs are made when they are first asked for, and kept.

    `user_ground_frac` of the queries are put on the set's USER crops, where it has some.
    """

    def __init__(self, crops: CropSet, seed: int, user_ground_frac: float = 0.0) -> None:
        self.crops, self.seed, self.user_ground_frac = crops, seed, user_ground_frac
        self.users = np.flatnonzero(crops.domains_N == USER)
        self.side = crops.tiles_NTT3.shape[1]
        self.cutouts: dict[int, Image.Image | None] = {}
        self.shop = np.flatnonzero(crops.domains_N == SHOP)

    def query(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(T, T, 3) uint8: crop `row` as part of a busy photo, and the box (0..1) that shows it."""
        item = self.cutout(row)
        if item is None:
            return self.crops.tiles_NTT3[row].copy(), self.crops.boxes_N4[row]
        canvas = self.ground(rng)
        scene = SCENES[int(rng.integers(len(SCENES)))]
        {"held": held, "pile": piled, "row": in_rows}[scene](canvas, item, rng)
        return np.array(canvas), np.array([0, 0, 1, 1], np.float32)

    @cached_property
    def grounds(self) -> list[Image.Image]:
        """Busy grounds, GROUND_FACTOR * T wide."""
        rng = np.random.default_rng([self.seed, 3])
        side = self.side * GROUND_FACTOR
        goods = [item for row in rng.permutation(self.shop)[:NUM_GROUNDS] if (item := self.cutout(int(row))) is not None]
        num_drawn = round(NUM_GROUNDS * DRAWN_FRAC) if goods else NUM_GROUNDS
        drawn = [busy_ground(rng, side) for _ in range(num_drawn)]
        return drawn + [goods_ground(goods, side, rng) for _ in range(NUM_GROUNDS - num_drawn)]

    def ground(self, rng: np.random.Generator) -> Image.Image:
        """A window of a busy ground, (T, T)."""
        smallest = 0.5
        if len(self.users) and rng.random() < self.user_ground_frac:
            photo = Image.fromarray(self.crops.tiles_NTT3[int(rng.choice(self.users))])
            ground, smallest = photo.resize((self.side * GROUND_FACTOR,) * 2, Image.Resampling.BILINEAR), 0.8
        else:
            ground = self.grounds[int(rng.integers(len(self.grounds)))]
        window = int(self.side * rng.uniform(smallest, GROUND_FACTOR))
        left, top = (int(rng.integers(ground.width - window + 1)) for _ in range(2))
        return ground.crop((left, top, left + window, top + window)).resize((self.side, self.side), Image.Resampling.BILINEAR)

    def cutout(self, row: int) -> Image.Image | None:
        """The item of crop `row` as RGBA, cropped to it, its edge soft; None where its ground is not plain."""
        if row not in self.cutouts:
            mask = item_mask(self.crops.tiles_NTT3[row])
            self.cutouts[row] = None if mask is None else cut(self.crops.tiles_NTT3[row], mask)
        return self.cutouts[row]


def cut(tile_TT3: np.ndarray, mask_TT: np.ndarray) -> Image.Image:
    """The masked part of a tile as RGBA, cropped to it; its outermost pixels, which show the old ground, are left out."""
    inner = ndimage.binary_erosion(mask_TT) if mask_TT.sum() > 200 else mask_TT
    ys, xs = np.nonzero(inner)
    window = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
    item = Image.fromarray(tile_TT3[window])
    alpha = ndimage.gaussian_filter(inner.astype(np.float32), 0.7)[window]
    item.putalpha(Image.fromarray((alpha * 255).astype(np.uint8)))
    return item


def item_mask(tile_TT3: np.ndarray) -> np.ndarray | None:
    """(T, T) bool: what is not plain ground joined to the border; None where there is no plain ground, or nothing on it."""
    corners = np.concatenate([tile_TT3[:3, :3], tile_TT3[:3, -3:], tile_TT3[-3:, :3], tile_TT3[-3:, -3:]]).reshape(-1, 3)
    colour = np.median(corners, axis=0)
    plain = np.abs(tile_TT3.astype(np.int16) - colour).max(axis=2) <= PLAIN_TOLERANCE
    labels, _ = ndimage.label(plain)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    mask = ~np.isin(labels, border[border > 0])
    if mask.mean() > 0.95:
        return None
    reach = max(1, round(CLOSING_FRAC * len(mask)))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    closed = ndimage.binary_closing(np.pad(mask, reach), structure=x * x + y * y <= reach * reach)
    filled: np.ndarray = ndimage.binary_fill_holes(closed)[reach:-reach, reach:-reach]
    return filled if filled.mean() >= MIN_ITEM_FRAC else None


def held(canvas: Image.Image, item: Image.Image, rng: np.random.Generator) -> None:
    """One copy, from half of the photo's side to larger than the photo."""
    centre = canvas.width * (0.5 + rng.uniform(-0.15, 0.15, 2))
    paste(canvas, item, canvas.width * rng.uniform(0.55, 1.25), rng.normal(0, 15), centre, squeeze=rng.uniform(0.8, 1.1))


def piled(canvas: Image.Image, item: Image.Image, rng: np.random.Generator) -> None:
    """Many copies over each other, the lower ones in the shadow, as in a crate."""
    side = canvas.width
    longest = side * rng.uniform(0.22, 0.6)
    copies = 3 + int(1.6 * (side / longest) ** 2)
    spread_deg = 180 if rng.random() < 0.6 else 25
    for light in np.linspace(0.45, 1.0, copies):
        turn, size = rng.uniform(-spread_deg, spread_deg), longest * rng.uniform(0.85, 1.15)
        paste(canvas, item, size, turn, rng.uniform(0, side, 2), light=float(light))


def in_rows(canvas: Image.Image, item: Image.Image, rng: np.random.Generator) -> None:
    """Copies side by side, one or two rows of them, some taken away, as on a shelf."""
    side = canvas.width
    height, tilt = side * rng.uniform(0.45, 1.1), rng.normal(0, 8)
    step = height * item.width / max(item.size)
    rows = 1 if height > 0.6 * side else 2
    columns = 1 + int(side / step / 2)
    first = np.array([side / 2, side * rng.uniform(0.4, 0.6) - height * (rows - 1) / 2])
    for row in range(rows):
        for column in range(-columns, columns + 1):
            if rng.random() < 0.12 and column:
                continue
            centre = first + np.array([column * step * rng.uniform(0.95, 1.05), row * height])
            paste(canvas, item, height * rng.uniform(0.97, 1.03), tilt + rng.normal(0, 4), centre, light=rng.uniform(0.8, 1.0))


def goods_ground(goods: list[Image.Image], side: int, rng: np.random.Generator) -> Image.Image:
    """(side, side): goods of the catalog, heaped or in rows, out of focus and in less light than what is photographed."""
    grey = int(rng.integers(20, 150))
    canvas = Image.new("RGB", (side, side), (grey, grey, grey))
    if rng.random() < 0.5:
        for _ in range(45):
            item = goods[int(rng.integers(len(goods)))]
            paste(canvas, item, side * rng.uniform(0.15, 0.4), rng.uniform(-40, 40), rng.uniform(0, side, 2))
    else:
        top = 0.0
        while top < side:
            height, left = side * rng.uniform(0.15, 0.35), 0.0
            while left < side:
                item = goods[int(rng.integers(len(goods)))]
                step = max(8.0, height * item.width / max(item.size) * rng.uniform(0.85, 1.1))
                for _ in range(int(rng.integers(1, 5))):
                    paste(canvas, item, height, rng.normal(0, 3), np.array([left, top + height / 2]))
                    left += step
            top += height * rng.uniform(0.9, 1.2)
    blurred = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0, side / 100)))
    return ImageEnhance.Brightness(blurred).enhance(rng.uniform(0.35, 1.0))


def paste(
    canvas: Image.Image,
    item: Image.Image,
    longest_px: float,
    degrees: float,
    centre_2: np.ndarray,
    *,
    light: float = 1.0,
    squeeze: float = 1.0,
) -> None:
    """Puts `item`, turned, with its middle at `centre_2` (x, y) on `canvas`; parts may lie outside.

    `longest_px`: its longer side before it is turned; `light`: share of its brightness; `squeeze`: its width's factor.
    """
    scale = longest_px / max(item.size)
    size = (max(4, round(item.width * scale * squeeze)), max(4, round(item.height * scale)))
    turned = item.resize(size, Image.Resampling.BILINEAR).rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    lit = turned.convert("RGB") if light == 1 else ImageEnhance.Brightness(turned.convert("RGB")).enhance(light)
    left, top = (round(float(place)) for place in centre_2 - np.array(turned.size) / 2)
    canvas.paste(lit, (left, top), turned.getchannel("A"))
