"""What the encoder learns from, wherever it comes from: crops as tiles, and the products they show.

Letters: N crops, T side of a tile; boxes are x0, y0, x1, y1 as shares of the tile's sides (0..1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

SHOP, PLAIN, USER = 0, 1, 2  # domain of a crop: whole catalog photo, item cut out of one, photo by a person
CONTEXT = 1.35  # side of a box's tile, in longer sides of the box: room for padding, jitter and rotation
WHOLE = 1.0  # the same of a photo's tile: there is nothing around it


@dataclass(frozen=True)
class TrainingProduct:
    """What training knows of a product. `attributes`: name -> word, of what a photo shows; `texts`: what is said about it."""

    product_id: str
    style: str  # products of one style (group_id) are siblings
    category: str | None
    texts: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CropSet:
    """Crops to embed. Tiles hold context around each box."""

    tiles_NTT3: np.ndarray  # uint8 RGB
    boxes_N4: np.ndarray  # float32
    products_N: np.ndarray  # int64, row of the product in `products`
    domains_N: np.ndarray  # int64: SHOP, PLAIN, USER
    products: tuple[TrainingProduct, ...]

    def part(self, rows: np.ndarray) -> "CropSet":
        """Some crops, and of the products only those that they show."""
        kept, products_N = np.unique(self.products_N[rows], return_inverse=True)
        return replace(
            self,
            tiles_NTT3=self.tiles_NTT3[rows],
            boxes_N4=self.boxes_N4[rows],
            products_N=products_N.astype(np.int64),
            domains_N=self.domains_N[rows],
            products=tuple(self.products[row] for row in kept),
        )


@dataclass(frozen=True)
class TrainingSet:
    """Crops to learn from, and those that the figures are measured on.

    In `held_out`, USER crops are the queries and all others are the catalog that is searched. `unseen_Q`: for each query, in
    their order, whether its product was left out of the training altogether, as a shop's new products are.
    """

    learn: CropSet
    held_out: CropSet
    unseen_Q: np.ndarray


def tile_of(pixels: np.ndarray, box: np.ndarray, tile_px: int, context: float = CONTEXT) -> tuple[np.ndarray, np.ndarray]:
    """A square window around an xyxy box in pixels, edges repeated beyond the photo: (T, T, 3) uint8; and the box in it."""
    side = context * float(max(box[2] - box[0], box[3] - box[1]))
    left, top = (box[:2] + box[2:]) / 2 - side / 2
    margin = int(np.ceil(side))
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    window = (left + margin, top + margin, left + margin + side, top + margin + side)
    tile = Image.fromarray(wide).resize((tile_px, tile_px), Image.Resampling.BILINEAR, box=window)
    return np.asarray(tile), ((box - [left, top, left, top]) / side).astype(np.float32)
