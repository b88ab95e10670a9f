"""Names of colours, and where each lies in CIELAB: generous bounds, for what is looked for is a colour that a photo lacks.

Only colours that a photo can lack are judged. White, grey, beige and metals are in nearly every photo (ground, shadow, skin), so
a product that names one of them is left alone. Bounds and shares were measured on 347 products of a real apparel shop, see
docs/catalog_doctor.md.
"""

# Letters: H, W rows and columns of pixels.

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from serve.vision.hash import D65_WHITE, RGB_TO_XYZ, XYZ_TO_LAB

GROUND_DISTANCE = 8.0  # CIE76 from the border's median colour: nearer pixels are the ground
UNJUDGED = "unjudged"


@dataclass(frozen=True)
class Region:
    """Part of CIELAB. `hues`: degrees, from first to second, through 0 where the first is larger."""

    hues: tuple[float, float] = (0.0, 360.0)
    min_chroma: float = 0.0
    max_chroma: float = 200.0
    max_lightness: float = 100.0


# Skin is orange of chroma 15 to 30: red, orange and yellow begin above most of it.
REGIONS = {
    "red": Region((335, 45), min_chroma=18),
    "orange": Region((30, 80), min_chroma=30),
    "yellow": Region((75, 125), min_chroma=15),
    "green": Region((88, 215), min_chroma=8),
    "blue": Region((185, 322), min_chroma=8),
    "purple": Region((275, 20), min_chroma=8),
    "pink": Region((300, 45), min_chroma=10),
    "brown": Region((15, 95), min_chroma=6),
    "black": Region(max_chroma=22, max_lightness=45),
}

# What the word means; any of several acquits. A title is read for PLAIN words alone, for "olive" or "rose" may be the goods.
WORDS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in REGIONS},
    **dict.fromkeys(("rot", "crimson", "scarlet", "ruby"), ("red",)),
    **dict.fromkeys(("burgundy", "maroon", "wine", "bordeaux"), ("red", "brown", "purple")),
    **dict.fromkeys(("coral", "salmon"), ("orange", "pink", "red")),
    **dict.fromkeys(("rust", "mustard"), ("orange", "brown", "yellow", "red")),
    **dict.fromkeys(("gelb", "lemon"), ("yellow",)),
    **dict.fromkeys(("grün", "olive", "lime", "mint", "emerald"), ("green",)),
    **dict.fromkeys(("teal", "turquoise", "türkis", "petrol", "aqua", "cyan"), ("green", "blue")),
    **dict.fromkeys(("blau", "cobalt", "azure"), ("blue",)),
    **dict.fromkeys(("navy", "midnight"), ("blue", "black")),
    **dict.fromkeys(("indigo", "denim", "violet", "violett", "lila", "lilac", "lavender", "plum"), ("purple", "blue")),
    **dict.fromkeys(("magenta", "fuchsia"), ("pink", "purple", "red")),
    **dict.fromkeys(("rosa", "rose"), ("pink", "red")),
    **dict.fromkeys(("braun", "chocolate", "cognac"), ("brown",)),
    **dict.fromkeys(("schwarz",), ("black",)),
    **dict.fromkeys(("white", "weiß", "ivory", "cream", "ecru", "beige", "sand", "tan", "nude", "camel", "khaki"), (UNJUDGED,)),
    **dict.fromkeys(("taupe", "peach", "natural", "gray", "grey", "grau", "charcoal", "anthracite"), (UNJUDGED,)),
    **dict.fromkeys(("silver", "silber", "gold", "golden", "bronze", "copper", "metallic"), (UNJUDGED,)),
    **dict.fromkeys(("multi", "multicolor", "multicolour", "multicolored", "multicoloured"), (UNJUDGED,)),
    **dict.fromkeys(("bunt", "rainbow", "transparent", "clear"), (UNJUDGED,)),
}
PLAIN = frozenset(REGIONS) | {"navy", "white", "gray", "grey", "blau", "schwarz", "grün", "gelb", "braun", "weiß", "grau"}


def named_frac(pixels_HW3: np.ndarray, families: list[str]) -> float:
    """Pixels of an sRGB photo (uint8) in one of the named colours, as a share of those that are not its ground."""
    lab_HW3 = lab(pixels_HW3)
    border = np.concatenate([lab_HW3[0], lab_HW3[-1], lab_HW3[:, 0], lab_HW3[:, -1]])
    goods_HW = np.linalg.norm(lab_HW3 - np.median(border, axis=0), axis=-1) > GROUND_DISTANCE
    named_HW = np.zeros_like(goods_HW)
    for within_HW in lies_in(lab_HW3, [REGIONS[family] for family in families]):
        named_HW |= within_HW
    return float(named_HW.sum() / max(1, goods_HW.sum()))  # over 1 where the ground has that colour, too


def lies_in(colours: np.ndarray, regions: Iterable[Region]) -> Iterator[np.ndarray]:
    """For each region which of the CIELAB colours (..., 3) lie in it, bool (...)."""
    lightness, a, b = np.moveaxis(colours, -1, 0)
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    for region in regions:
        first, last = region.hues
        in_hues = (hue >= first) & (hue <= last) if first <= last else (hue >= first) | (hue <= last)
        in_chroma = (chroma >= region.min_chroma) & (chroma <= region.max_chroma)
        yield in_hues & in_chroma & (lightness <= region.max_lightness)


def lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB 0..255 as CIELAB (D65), float64; the colours of a signature (serve.vision.hash), not rounded."""
    srgb = pixels / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ RGB_TO_XYZ.T / D65_WHITE
    compressed = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    values: np.ndarray = compressed @ XYZ_TO_LAB.T - np.array([16.0, 0.0, 0.0])
    return values
