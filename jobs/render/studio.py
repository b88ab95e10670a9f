"""Studio photos: one product on near-white ground with a soft shadow, seen three ways."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from jobs.render.paint import paint
from jobs.render.products import RenderedProduct

NUM_VIEWS = 3  # 0 front; 1 turned to the left; 2 turned to the right, and its photo a close-up
TURNS = {0: (1.0, 0.0, 0.0), 1: (0.80, 0.10, -7.0), 2: (0.86, -0.12, 8.0)}  # width, shear, degrees


def turn_of(view: int) -> np.ndarray:
    """The (2, 2) map of product units under a view."""
    if view not in TURNS:
        raise ValueError(f"view={view}: allowed are 0 to {NUM_VIEWS - 1}")
    width, shear, degrees = TURNS[view]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.asarray(np.array([[cos, -sin], [sin, cos]]) @ np.array([[width, 0.0], [shear, 1.0]]))


@lru_cache(maxsize=1024)
def cutout(product: RenderedProduct, view: int, px: int) -> np.ndarray:
    """The product alone in a tight box whose longer side is `px`: (h, w, 4) uint8 RGBA, read-only, kept per process."""
    pixels = paint(product, turn_of(view), px)
    pixels.flags.writeable = False
    return pixels


def studio_photo(product: RenderedProduct, view: int, px: int) -> np.ndarray:
    """The product as a shop shows it: (px, px, 3) uint8 RGB. View 2 is a close-up of about two thirds of it."""
    rng = np.random.default_rng([int(product.product_id.rsplit("-", 1)[-1]), view])
    fill = rng.uniform(0.74, 0.86) if view < 2 else rng.uniform(1.15, 1.3)
    item = paint(product, turn_of(view), round(px * fill))
    height, width = item.shape[:2]
    left = round((px - width) / 2 + rng.uniform(-0.02, 0.02) * px)
    top = round((px - height) / 2 + rng.uniform(-0.02, 0.02) * px)

    tint = 244 + rng.uniform(-4, 8, 3)
    fall = np.linspace(1.0, rng.uniform(0.93, 0.98), px)[:, None, None]
    ground = np.clip(np.broadcast_to(tint, (px, px, 3)) * fall, 0, 255).astype(np.uint8)
    photo = Image.fromarray(np.ascontiguousarray(ground))
    alpha = Image.fromarray(np.ascontiguousarray(item[..., 3]))
    shadow = Image.new("L", (px, px), 0)
    shadow.paste(alpha.point(lambda a: a * 0.42), (left + round(0.012 * px), top + round(0.022 * px)))
    shadow = shadow.filter(ImageFilter.BoxBlur(0.022 * px)).filter(ImageFilter.BoxBlur(0.022 * px))
    photo.paste((92, 92, 104), mask=shadow)
    photo.paste(Image.fromarray(np.ascontiguousarray(item[..., :3])), (left, top), alpha)
    return np.asarray(photo)
