"""Street scenes: one to four products on busy ground under changed light, with the exact truth of what is where.

Letters: N products in the scene, H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from jobs.render.camera import Camera, as_photographed
from jobs.render.grounds import busy_ground, clutter
from jobs.render.products import RenderedProduct
from jobs.render.studio import NUM_VIEWS, cutout

CUTOUT_PX = 208  # of the kept cutouts; enough for a product that fills a 320 px scene
MIN_SIDE_FRAC, MAX_SIDE_FRAC = 0.22, 0.78  # of the scene: a product's longer side
TRIES = 12  # places tried for a product or a clutter piece before it is made smaller, then left out
GROUND = -1


@dataclass(frozen=True)
class Scene:
    """A photo and its truth. Products that could not be placed are left out; there is always at least one."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    boxes_N4: np.ndarray  # float32 xyxy pixels of the visible part, x1 and y1 exclusive
    product_ids: tuple[str, ...]
    categories: tuple[str, ...]
    occluded_frac_N: np.ndarray  # float32, hidden share of each product's own pixels
    owner_HW: np.ndarray  # int8: row of the product seen at a pixel, -1 for anything else


@dataclass(frozen=True)
class Placed:
    """A warped RGBA picture and where its top left corner lies."""

    picture: Image.Image
    left: int
    top: int

    @property
    def window(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.picture.height), slice(self.left, self.left + self.picture.width)

    def solid(self) -> np.ndarray:
        """Where it covers what is behind: (h, w) bool."""
        return np.asarray(self.picture.getchannel("A")) > 127


def street_scene(
    products: Sequence[RenderedProduct],
    rng: np.random.Generator,
    px: int,
    *,
    max_rotation_deg: float = 25.0,
    max_tilt: float = 0.10,
    max_occluded_frac: float = 0.4,
    num_clutter: tuple[int, int] = (1, 6),
    side_frac: tuple[float, float] | None = None,
    view: int | None = None,
    camera: Camera | None = None,
) -> Scene:
    """`products` as a phone may see them: (px, px) scene.

    `side_frac`: range of a product's longer side as a share of the scene (default by the number of products).
    `max_tilt`: perspective, as the largest shift of a corner in shares of the product. `view`: fixes the studio view.
    """
    if not 1 <= len(products) <= 4:
        raise ValueError(f"{len(products)} products: a scene holds 1 to 4")
    largest = MAX_SIDE_FRAC / len(products) ** 0.4
    low, high = side_frac or (max(MIN_SIDE_FRAC, largest * 0.5), largest)
    ground = busy_ground(rng, px)
    fewest, most = num_clutter
    pieces = int(rng.integers(fewest, most + 1))
    for _ in range(pieces // 2):  # behind the products
        piece = clutter(rng, px * rng.uniform(0.15, 0.5))
        drop(ground, Placed(piece, int(rng.integers(-px // 8, px)), int(rng.integers(-px // 8, px))), 0.25)

    owner = np.full((px, px), GROUND, np.int8)
    own_px: list[int] = []
    shown: list[RenderedProduct] = []
    for product in products:
        seen_from = int(rng.integers(NUM_VIEWS)) if view is None else view
        side = px * rng.uniform(low, high)
        for attempt in range(TRIES):
            shrink = 0.93**attempt if shown else 1.0
            warped = warp(cutout(product, seen_from, CUTOUT_PX), side * shrink, rng, max_rotation_deg, max_tilt, px)
            placed = place(warped, rng, px)
            solid = placed.solid()
            if hides_too_much(owner, placed.window, solid, own_px, max_occluded_frac):
                continue
            drop(ground, placed, 0.35)
            owner[placed.window][solid] = len(shown)
            own_px.append(int(solid.sum()))
            shown.append(product)
            break
    for _ in range(pieces - pieces // 2):  # in front of them
        for _ in range(TRIES // 3):
            placed = place(clutter(rng, px * rng.uniform(0.12, 0.4)), rng, px)
            solid = placed.solid()
            if not hides_too_much(owner, placed.window, solid, own_px, max_occluded_frac):
                drop(ground, placed, 0.3)
                owner[placed.window][solid] = GROUND
                break

    visible = np.bincount(owner[owner >= 0].ravel(), minlength=len(shown))
    return Scene(
        pixels=as_photographed(ground, rng, camera or Camera()),
        boxes_N4=np.stack([box_of(owner == row) for row in range(len(shown))]),
        product_ids=tuple(product.product_id for product in shown),
        categories=tuple(product.category for product in shown),
        occluded_frac_N=(1 - visible / np.asarray(own_px)).astype(np.float32),
        owner_HW=owner,
    )


def warp(
    item: np.ndarray, side: float, rng: np.random.Generator, max_rotation_deg: float, max_tilt: float, px: int
) -> Image.Image:
    """The cutout with its longer side `side` pixels, rotated and seen in slight perspective, at most `px` in a box of its own."""
    height, width = item.shape[:2]
    scale = side / max(height, width)
    angle = np.radians(rng.uniform(-max_rotation_deg, max_rotation_deg))
    corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]], np.float64) * scale / 2
    corners = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners += rng.uniform(-max_tilt, max_tilt, (4, 2)) * side / 2
    corners -= corners.min(axis=0)
    corners *= min(1.0, (px - 2) / corners.max())
    size = int(np.ceil(corners[:, 0].max())), int(np.ceil(corners[:, 1].max()))
    source = Image.fromarray(np.ascontiguousarray(item))
    if scale < 0.6:
        source = source.reduce(2)
    ends = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * source.size
    return source.transform(size, Image.Transform.PERSPECTIVE, homography(corners, ends), Image.Resampling.BILINEAR)


def homography(target_42: np.ndarray, source_42: np.ndarray) -> list[float]:
    """Pillow's eight numbers that map target corners onto source corners."""
    rows = []
    for (x, y), (u, v) in zip(target_42, source_42, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return [float(value) for value in np.linalg.solve(np.asarray(rows), source_42.ravel())]


def place(picture: Image.Image, rng: np.random.Generator, px: int) -> Placed:
    """Somewhere wholly inside the scene."""
    return Placed(picture, int(rng.integers(0, px - picture.width + 1)), int(rng.integers(0, px - picture.height + 1)))


def hides_too_much(
    owner: np.ndarray, window: tuple[slice, slice], solid: np.ndarray, own_px: Sequence[int], limit: float
) -> bool:
    """Whether covering `solid` would leave any product more hidden than `limit`."""
    covered = owner[window][solid]
    hit = np.unique(covered[covered >= 0])
    return any((owner == row).sum() - (covered == row).sum() < (1 - limit) * own_px[row] for row in hit)


def drop(ground: Image.Image, placed: Placed, strength: float) -> None:
    """Pastes it in, on a soft shadow."""
    alpha = placed.picture.getchannel("A")
    pad = max(3, max(placed.picture.size) // 12)
    shadow = Image.new("L", (alpha.width + 2 * pad, alpha.height + 2 * pad), 0)
    shadow.paste(alpha.point(lambda a: a * strength), (pad, pad))
    shadow = shadow.filter(ImageFilter.BoxBlur(pad / 2))
    ground.paste((0, 0, 0), (placed.left - pad // 2, placed.top - pad // 3), shadow)
    ground.paste(placed.picture, (placed.left, placed.top), alpha)


def box_of(mask_HW: np.ndarray) -> np.ndarray:
    """Tight xyxy box of a mask that is not empty: (4,) float32."""
    columns, rows = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
