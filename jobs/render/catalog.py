"""What the generated shop sells: the category tree with its shape parameters, the colours, brands and logos.

A shape parameter is a choice of words, each with its number: the word goes into title and description, the number
into the drawing. Numbers of one parameter lie far enough apart to be seen in a 96 px photo.
"""

from dataclasses import dataclass

Levels = dict[str, float]


@dataclass(frozen=True)
class CategorySpec:
    """One leaf of the category tree."""

    path: str
    noun: str
    finish: str  # cloth, leather, gloss or matte: how light falls on it
    price: float  # median, in EUR
    genders: tuple[str, ...]  # empty: not worn
    textures: tuple[str, ...]
    shape: dict[str, Levels]

    @property
    def leaf(self) -> str:
        return self.path.rsplit("/", 1)[-1]


ANYONE = ("women", "men", "unisex")
CLOTH = ("smooth", "denim", "knit", "canvas")

CATEGORIES = (
    CategorySpec("apparel/tops/t-shirt", "T-shirt", "cloth", 24, ANYONE, ("smooth", "knit", "canvas"), {
        "fit": {"slim": 0.42, "regular": 0.52, "wide": 0.64}, "length": {"cropped": 0.52, "regular": 0.68, "long": 0.88},
        "sleeves": {"short": 0.13, "elbow": 0.28, "long": 0.54}, "neckline": {"round": 0, "V": 1, "polo": 2}}),
    CategorySpec("apparel/tops/hoodie", "hoodie", "cloth", 49, ANYONE, ("smooth", "knit"), {
        "fit": {"slim": 0.46, "regular": 0.55, "wide": 0.66}, "length": {"cropped": 0.56, "regular": 0.7, "long": 0.86},
        "hood": {"low": 0.13, "high": 0.24}, "front": {"plain": 0, "zipped": 1, "pocket": 2}}),
    CategorySpec("apparel/bottoms/pants", "pants", "cloth", 45, ANYONE, ("denim", "smooth", "canvas"), {
        "length": {"short": 0.48, "cropped": 0.76, "long": 1.0}, "cut": {"slim": 0.11, "straight": 0.155, "wide": 0.21},
        "hem": {"tapered": 0.7, "straight": 1.0, "flared": 1.45}}),
    CategorySpec("apparel/bottoms/skirt", "skirt", "cloth", 35, ("women",), ("denim", "smooth", "knit"), {
        "length": {"mini": 0.38, "knee": 0.6, "maxi": 0.92}, "cut": {"pencil": 0.0, "A-line": 0.12, "full": 0.28},
        "pleats": {"no": 0, "four": 4, "nine": 9}}),
    CategorySpec("apparel/dresses/dress", "dress", "cloth", 65, ("women",), ("smooth", "knit"), {
        "length": {"mini": 0.72, "knee": 0.88, "maxi": 1.1}, "cut": {"pencil": 0.0, "A-line": 0.13, "full": 0.27},
        "sleeves": {"no": 0.0, "short": 0.12, "long": 0.42}, "neckline": {"round": 0, "V": 1},
        "waist": {"plain": 0, "belted": 1}}),
    CategorySpec("apparel/hats/hat", "hat", "cloth", 22, ANYONE, CLOTH, {
        "style": {"cap": 0, "brimmed": 1, "bobble": 2}, "crown": {"low": 0.25, "medium": 0.34, "high": 0.44},
        "brim": {"narrow": 0.06, "medium": 0.14, "wide": 0.24}}),
    CategorySpec("shoes/boot", "boot", "leather", 110, ANYONE, ("leather", "smooth"), {
        "shaft": {"ankle": 0.48, "calf": 0.72, "knee-high": 0.98}, "heel": {"flat": 0.02, "block": 0.12, "stiletto": 0.26},
        "toe": {"round": 0.0, "long": 0.09}, "closure": {"slip-on": 0, "laced": 1, "buckled": 2}}),
    CategorySpec("shoes/sneaker", "sneaker", "leather", 80, ANYONE, ("leather", "canvas", "knit"), {
        "sole": {"thin": 0.06, "medium": 0.11, "thick": 0.17}, "collar": {"low": 0.3, "mid": 0.39, "high": 0.52},
        "side": {"curved": 0, "two-stripe": 2, "three-stripe": 3}}),
    CategorySpec("bags/handbag", "handbag", "leather", 90, ("women", "unisex"), ("leather", "canvas", "smooth"), {
        "width": {"narrow": 0.42, "medium": 0.6, "wide": 0.82}, "height": {"flat": 0.34, "medium": 0.46, "tall": 0.62},
        "handle": {"short": 0.13, "medium": 0.24, "long": 0.4}, "closure": {"zip": 0, "flap": 1, "belt": 2}}),
    CategorySpec("bags/backpack", "backpack", "cloth", 70, ANYONE, ("canvas", "leather", "smooth"), {
        "width": {"narrow": 0.46, "medium": 0.58, "wide": 0.72}, "height": {"short": 0.66, "medium": 0.8, "tall": 0.98},
        "corners": {"round": 2.6, "square": 7.0}, "pockets": {"no": 0, "one": 1, "two": 2}}),
    CategorySpec("home/kitchen/mug", "mug", "gloss", 14, (), ("ceramic",), {
        "height": {"low": 0.36, "medium": 0.5, "tall": 0.68}, "taper": {"tapered": 0.66, "straight": 1.0, "flared": 1.18},
        "handle": {"round": 0, "square": 1, "ear": 2}}),
    CategorySpec("home/kitchen/bottle", "bottle", "gloss", 19, (), ("metal", "glass"), {
        "body": {"slim": 0.22, "medium": 0.3, "wide": 0.42}, "neck": {"short": 0.13, "medium": 0.22, "long": 0.36},
        "shoulders": {"sharp": 0.05, "soft": 0.17}, "label": {"narrow": 0.1, "medium": 0.19, "tall": 0.28},
        "cap": {"screw": 0, "loop": 1, "cork": 2}}),
    CategorySpec("home/decor/vase", "vase", "gloss", 32, (), ("ceramic", "glass"), {
        "belly": {"slim": 0.2, "round": 0.3, "wide": 0.4}, "form": {"high": 0.32, "middle": 0.48, "low": 0.64},
        "mouth": {"narrow": 0.08, "medium": 0.14, "wide": 0.22}, "handles": {"no": 0, "two": 1}}),
    CategorySpec("home/lighting/lamp", "lamp", "matte", 58, (), ("canvas", "smooth"), {
        "form": {"cone": 0, "drum": 1, "dome": 2}, "shade": {"small": 0.24, "medium": 0.32, "wide": 0.42},
        "stem": {"short": 0.24, "medium": 0.42, "tall": 0.66}, "foot": {"disc": 0, "tripod": 1, "globe": 2},
        "base": {"narrow": 0.13, "wide": 0.22}}),
    CategorySpec("electronics/audio/headphones", "headphones", "matte", 95, (), ("smooth", "leather"), {
        "band": {"thin": 0.055, "medium": 0.09, "thick": 0.135}, "cups": {"small": 0.14, "medium": 0.185, "large": 0.235},
        "form": {"round": 2.0, "square": 5.0}, "microphone": {"no": 0, "boom": 1}}),
    CategorySpec("electronics/wearables/watch", "watch", "leather", 140, ANYONE, ("leather", "smooth", "canvas"), {
        "strap": {"slim": 0.085, "medium": 0.115, "wide": 0.15}, "case": {"small": 0.18, "medium": 0.215, "large": 0.255},
        "face": {"round": 2.0, "square": 6.0}, "dial": {"pale": 0, "dark": 1, "digital": 2}}),
)  # fmt: skip
CATEGORY = {spec.path: spec for spec in CATEGORIES}

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (36, 36, 40), "white": (238, 237, 232), "grey": (134, 137, 143), "navy": (32, 44, 96), "blue": (40, 98, 205),
    "sky": (132, 188, 234), "teal": (14, 126, 130), "green": (46, 142, 68), "olive": (112, 114, 48), "mint": (164, 220, 192),
    "yellow": (243, 203, 48), "orange": (238, 124, 36), "red": (208, 36, 42), "burgundy": (112, 22, 48), "pink": (242, 148, 180),
    "purple": (114, 58, 156), "beige": (218, 196, 156), "brown": (118, 72, 40),
}  # fmt: skip
NEUTRAL = ("black", "white", "grey", "navy", "beige", "brown")

PATTERN_SIZES = {"fine": 0.075, "medium": 0.125, "bold": 0.21}  # period, in product units
ANY_TURN = ("level", "diagonal", "upright")


@dataclass(frozen=True)
class PatternSpec:
    """A pattern: its share of products, the word for a title, and the turns and sizes that change it."""

    share: float
    adjective: str
    turns: tuple[str, ...]
    sizes: tuple[str, ...] = tuple(PATTERN_SIZES)


PATTERNS = {
    "plain": PatternSpec(0.34, "plain", ("level",), ("medium",)),
    "stripes": PatternSpec(0.14, "striped", ANY_TURN),
    "dots": PatternSpec(0.10, "dotted", ("level", "diagonal")),
    "checks": PatternSpec(0.10, "checked", ("level", "diagonal")),
    "zigzag": PatternSpec(0.08, "zigzag", ("level", "upright")),
    "gradient": PatternSpec(0.08, "two-tone", ANY_TURN, ("medium",)),
    "floral": PatternSpec(0.08, "floral", ("level",)),
    "blocks": PatternSpec(0.08, "colour-block", ANY_TURN),
}
PATTERN_TURNS = {"level": 0.0, "diagonal": 45.0, "upright": 90.0}  # degrees

GLYPHS = ("star", "heart", "ring", "triangle", "bolt", "cross", "moon", "diamond", "leaf", "arrow", "hexagon", "wave")

BRANDS = ("Aldern", "Brisk & Co", "Corvo", "Dunholm", "Elmfield", "Fjordlight", "Granada", "Harbour Row", "Isola", "Juno Works")
