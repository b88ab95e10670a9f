"""Products of the generated catalog: what each one is, in exact terms. studio.py and scenes.py draw them."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np

from jobs.render.catalog import (
    BRANDS,
    CATEGORIES,
    CATEGORY,
    COLOURS,
    GLYPHS,
    PATTERNS,
    CategorySpec,
)
from jobs.render.goods import SILHOUETTES as GOODS
from jobs.render.wear import SILHOUETTES as WEAR
from jobs.render.wear import Drawing

SIBLING_FRAC = 0.145  # chance of recolouring an earlier style; about 25 % of products then have a sibling
RECENT_STYLES = 40  # siblings come from this many styles before, as in a feed sorted by season
LOGO_FRAC = 0.6
PATTERN_SHARES = np.cumsum([spec.share for spec in PATTERNS.values()])
DULL = ("regular", "medium", "no", "plain", "middle", "straight", "pale")  # words that tell a shopper nothing
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class RenderedProduct:
    """One generated product. Two products of one `make_products` call never share category + shape + looks."""

    product_id: str
    category: str  # path
    shape: tuple[tuple[str, str], ...]  # parameter, word; numbers in catalog.CATEGORIES
    main_colour: str  # names of catalog.COLOURS
    accent_colour: str
    logo_colour: str
    pattern: str
    pattern_size: str
    pattern_turn: str
    texture: str
    logo: str | None  # glyph
    logo_position: str | None
    title: str
    description: str
    price: float
    currency: str
    stock: int
    available: bool
    gender: str | None
    brand: str
    popularity: float
    updated_at: str  # ISO 8601, UTC
    group_id: str  # style: siblings differ in colour alone
    color: str

    @property
    def spec(self) -> CategorySpec:
        return CATEGORY[self.category]

    def drawing(self) -> Drawing:
        """Its silhouette in product units, without pattern and logo."""
        return drawing_of(self.spec, self.shape)

    def looks(self) -> tuple[object, ...]:
        """What tells products apart in a photo; the texture is left out, it is too faint for that."""
        turned = (self.pattern_size, self.pattern_turn)
        logo = (self.logo, self.logo_position, self.logo_colour) if self.logo else ()
        return (self.category, self.shape, self.main_colour, self.accent_colour, self.pattern, *turned, logo)


SILHOUETTES = WEAR | GOODS


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """One of the choices, each as likely; 10 times faster than Generator.choice."""
    return choices[int(rng.integers(len(choices)))]


def drawing_of(spec: CategorySpec, shape: tuple[tuple[str, str], ...]) -> Drawing:
    """The silhouette of a shape given in words."""
    return SILHOUETTES[spec.leaf]({name: spec.shape[name][word] for name, word in shape})


@cache
def contrast(first: str, second: str) -> float:
    """How different two named colours look: weighted RGB distance, 0 to about 1."""
    difference = (np.subtract(COLOURS[first], COLOURS[second]) / 255.0) * np.sqrt([0.3, 0.45, 0.25])
    return float(np.linalg.norm(difference))


def other_colour(rng: np.random.Generator, *against: str) -> str:
    """A colour that can be told from all of `against`."""
    return pick(rng, [name for name in COLOURS if all(contrast(name, other) > 0.22 for other in against)])


def new_style(rng: np.random.Generator, index: int) -> RenderedProduct:
    """A product of a style of its own, without words and trade data."""
    spec = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    shape = tuple((name, pick(rng, list(levels))) for name, levels in spec.shape.items())
    main = pick(rng, list(COLOURS))
    accent = other_colour(rng, main)
    pattern = list(PATTERNS)[int(np.searchsorted(PATTERN_SHARES, rng.random(), side="right"))]
    logo = pick(rng, GLYPHS) if rng.random() < LOGO_FRAC else None
    position = pick(rng, list(drawing_of(spec, shape).anchors)) if logo else None
    return RenderedProduct(
        product_id=f"gen-{index:05d}",
        category=spec.path,
        shape=shape,
        main_colour=main,
        accent_colour=accent,
        logo_colour=other_colour(rng, main, accent),
        pattern=pattern,
        pattern_size=pick(rng, PATTERNS[pattern].sizes),
        pattern_turn=pick(rng, PATTERNS[pattern].turns),
        texture=pick(rng, spec.textures),
        logo=logo,
        logo_position=position,
        title="",
        description="",
        price=round(float(spec.price * np.exp(rng.normal(0, 0.35))), 0) - 0.05,
        currency="EUR",
        stock=0,
        available=False,
        gender=pick(rng, spec.genders) if spec.genders else None,
        brand=pick(rng, BRANDS),
        popularity=0.0,
        updated_at="",
        group_id=f"style-{index:05d}",
        color=main,
    )


def recoloured(style: RenderedProduct, rng: np.random.Generator, index: int) -> RenderedProduct:
    """The same style in another main colour; accent and logo keep their colour where it still shows."""
    main = other_colour(rng, style.main_colour)
    accent = style.accent_colour if contrast(main, style.accent_colour) > 0.22 else other_colour(rng, main)
    logo_shows = min(contrast(main, style.logo_colour), contrast(accent, style.logo_colour)) > 0.22
    logo = style.logo_colour if logo_shows else other_colour(rng, main, accent)
    return replace(style, product_id=f"gen-{index:05d}", main_colour=main, accent_colour=accent, logo_colour=logo, color=main)


def described(product: RenderedProduct) -> RenderedProduct:
    """With title and description: what is seen, in words."""
    spec = product.spec
    adjective = "" if product.pattern == "plain" else f"{PATTERNS[product.pattern].adjective} "
    owner = {"women": "women's ", "men": "men's "}.get(product.gender or "", "")
    feature = next((f", {word} {name}" for name, word in product.shape if word not in DULL), "")
    title = f"{product.brand} {owner}{adjective}{spec.noun} in {product.color}{feature}"
    shape = ", ".join(f"{word} {name}" for name, word in product.shape)
    surface = f"{product.texture} {spec.noun}" if product.texture != "smooth" else spec.noun
    text = f"{product.main_colour.capitalize()} {surface} with {product.accent_colour} details: {shape}."
    if product.pattern != "plain":
        words = f"{product.pattern_size} {product.pattern_turn} {product.pattern}".capitalize()
        text += f" {words} in {product.main_colour} and {product.accent_colour}."
    if product.logo:
        text += f" {product.logo_colour.capitalize()} {product.logo} logo ({product.logo_position})."
    return replace(product, title=title, description=text)


def stocked(product: RenderedProduct, rng: np.random.Generator) -> RenderedProduct:
    """With trade data: stock, popularity (0..1, few high) and the day it changed last."""
    stock = 0 if rng.random() < 0.06 else int(rng.integers(1, 200))
    changed = FIRST_DAY + timedelta(minutes=int(rng.integers(0, 60 * 24 * 180)))
    return replace(
        product,
        stock=stock,
        available=stock > 0,
        popularity=round(float(rng.beta(0.6, 4.0)), 4),
        updated_at=changed.isoformat(),
    )


def make_products(num: int, seed: int) -> list[RenderedProduct]:
    """`num` products, no two of which look the same. The first n of a seed do not depend on `num`."""
    products: list[RenderedProduct] = []
    styles: deque[RenderedProduct] = deque(maxlen=RECENT_STYLES)
    seen: set[tuple[object, ...]] = set()
    for index in range(num):
        rng = np.random.default_rng([seed, index])
        is_sibling = bool(styles) and rng.random() < SIBLING_FRAC
        style = styles[int(rng.integers(len(styles)))] if is_sibling else None
        product = new_style(rng, index) if style is None else recoloured(style, rng, index)
        while product.looks() in seen:
            style = None
            product = new_style(rng, index)
        if style is None:
            styles.append(product)
        seen.add(product.looks())
        products.append(stocked(described(product), rng))
    return products
