"""Silhouettes of what is worn: tops, bottoms, dresses, hats and shoes, from shape parameters.

Each function takes the parameters of its category (`catalog.CATEGORIES`) and gives a Drawing: painted parts from
back to front, and the anchors where a logo may sit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jobs.render.geometry import ellipse, mirror, points, ribbon, rounded, smooth, symmetric

Shape = Mapping[str, float]


@dataclass(frozen=True)
class Part:
    """One filled outline. `paint`: body (main colour with the pattern), main, shade (darker main), accent, dark, metal,
    pale, wood, glow or hole (nothing: what is behind shows)."""

    outline: np.ndarray
    paint: str = "body"


@dataclass(frozen=True)
class Drawing:
    """Parts from back to front; `anchors`: logo position -> (x, y, radius)."""

    parts: tuple[Part, ...]
    anchors: Mapping[str, tuple[float, float, float]]


def both(outline: np.ndarray, paint: str) -> list[Part]:
    """A part and its mirror image."""
    return [Part(outline, paint), Part(mirror(outline), paint)]


def sleeve(shoulder: float, length: float, width: float, angle_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """The right sleeve and its cuff, hanging from the shoulder at `angle_deg` below the horizontal."""
    angle = np.radians(angle_deg)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    top = np.array([shoulder - 0.06, 0.03])
    root = np.array([shoulder - 0.05, 0.05 + width * 1.25])
    far_top = top + along * (length + 0.06)
    far_low = far_top + across * width * 0.8
    body = np.stack([top, top + along * 0.08 + across * 0.004, far_top, far_low, root])
    cuff = np.stack([far_top - along * 0.035, far_top, far_low, far_low - along * 0.035])
    return body, cuff


def torso(width: float, length: float, waist: float = 1.0, hem: float = 1.0) -> np.ndarray:
    """Front of a top: neck at y = 0, hem at `length`."""
    half = width / 2
    right = [(0.10, 0.0), (half - 0.03, 0.045), (half, 0.10), (half * 0.98, 0.24), (half * waist, length * 0.6)]
    return symmetric(np.concatenate([points(*right), points((half * hem, length * 0.97), (half * hem * 0.97, length))]))


def t_shirt(p: Shape) -> Drawing:
    half = p["fit"] / 2
    arm, cuff = sleeve(half, p["sleeves"], 0.16, 42 + 40 * p["sleeves"])
    parts = [*both(arm, "body"), *both(cuff, "accent"), Part(torso(p["fit"], p["length"]), "body")]
    if p["neckline"] == 1:  # v-neck
        parts += [Part(points((-0.125, -0.005), (0.125, -0.005), (0, 0.205)), "accent")]
        parts += [Part(points((-0.09, -0.01), (0.09, -0.01), (0, 0.145)), "shade")]
    else:
        parts += [Part(ellipse(0, 0.0, 0.13, 0.085), "accent"), Part(ellipse(0, -0.012, 0.095, 0.055), "shade")]
    if p["neckline"] == 2:  # polo
        parts += both(points((0.0, 0.075), (0.055, 0.15), (0.155, 0.045), (0.11, -0.02)), "accent")
        parts += [Part(points((-0.025, 0.075), (0.025, 0.075), (0.025, 0.24), (-0.025, 0.24)), "main")]
        parts += [Part(ellipse(0, y, 0.011, 0.011, 10), "pale") for y in (0.13, 0.19)]
    return Drawing(tuple(parts), {"chest": (0.12, 0.20, 0.055), "front": (0, p["length"] * 0.55, 0.13)})


def hoodie(p: Shape) -> Drawing:
    half, length = p["fit"] / 2, p["length"]
    arm, cuff = sleeve(half, 0.52, 0.17, 64)
    parts = [*both(arm, "body"), *both(cuff, "accent")]
    parts += [Part(torso(p["fit"], length), "body")]
    parts += [
        Part(
            points((-half, length * 0.94), (half, length * 0.94), (half * 0.97, length + 0.03), (-half * 0.97, length + 0.03)),
            "accent",
        )
    ]
    hood = p["hood"]
    parts += [Part(smooth([(-0.19, 0.10), (-0.17, -0.06), (0, -hood), (0.17, -0.06), (0.19, 0.10), (0, 0.16)]), "main")]
    parts += [Part(smooth([(-0.12, 0.06), (-0.11, -0.04), (0, -hood * 0.62), (0.11, -0.04), (0.12, 0.06), (0, 0.12)]), "shade")]
    if p["front"] == 1:  # zip
        parts += [Part(points((-0.012, 0.12), (0.012, 0.12), (0.012, length), (-0.012, length)), "metal")]
    if p["front"] == 2:  # kangaroo pocket
        low, high = length * 0.92, length * 0.66
        parts += [Part(points((-0.12, high), (0.12, high), (half * 0.72, low), (-half * 0.72, low)), "shade")]
    parts += both(ribbon(points((0.06, 0.12), (0.065, 0.2), (0.06, 0.28)), 0.016), "pale")
    return Drawing(tuple(parts), {"chest": (0.13, 0.25, 0.05), "front": (0, length * 0.48, 0.11)})


def pants(p: Shape) -> Drawing:
    length, leg, hem = p["length"], p["cut"], p["hem"]
    waist, hip = 0.17, 0.21
    right = points((waist, 0), (hip, 0.2), (0.035 + leg * 0.95, 0.34), (0.05 + leg * hem, length), (0.05, length), (0.008, 0.32))
    crotch = points((0, 0.3))
    parts = [Part(np.concatenate([right[:5], right[5:], crotch, mirror(right)[::-1]]), "body")]
    parts += both(
        points((0.05, length - 0.035), (0.05 + leg * hem, length - 0.035), (0.05 + leg * hem, length), (0.05, length)), "accent"
    )
    parts += [Part(points((-waist - 0.005, 0), (waist + 0.005, 0), (waist + 0.02, 0.055), (-waist - 0.02, 0.055)), "accent")]
    parts += [Part(points((-0.008, 0.055), (0.008, 0.055), (0.008, 0.29), (-0.008, 0.29)), "shade")]
    parts += both(ribbon(points((0.09, 0.06), (0.12, 0.12), (0.2, 0.14)), 0.014), "shade")
    parts += [Part(ellipse(0, 0.028, 0.014, 0.014, 12), "metal")]
    return Drawing(tuple(parts), {"hip": (0.11, 0.22, 0.045), "leg": (0.03 + leg * 0.45, 0.40, min(0.06, leg * 0.4))})


def skirt(p: Shape) -> Drawing:
    length, flare = p["length"], p["cut"]
    hem = 0.2 + flare
    bottom = np.stack([np.linspace(hem, -hem, 24), length + 0.03 * np.sin(np.linspace(0, np.pi, 24))], axis=1)
    side = smooth([(0.17, 0.0), (0.2 + flare * 0.25, length * 0.4), (hem, length)], closed=False)
    parts = [Part(np.concatenate([side, bottom, mirror(side)[::-1]]), "body")]
    pleats = int(p["pleats"])
    for i in range(pleats):
        u = (i + 0.5) / pleats * 2 - 1
        parts += [Part(points((u * 0.155, 0.06), (u * hem - 0.012, length), (u * hem + 0.012, length)), "shade")]
    parts += [Part(np.concatenate([bottom - np.array([0, 0.035]), bottom[::-1]]), "accent")]
    parts += [Part(points((-0.17, 0), (0.17, 0), (0.18, 0.065), (-0.18, 0.065)), "accent")]
    return Drawing(tuple(parts), {"hip": (0.1, 0.14, 0.04), "hem": (hem * 0.5, length * 0.78, 0.055)})


def dress(p: Shape) -> Drawing:
    length, flare, half = p["length"], p["cut"], 0.19
    hem = half + flare
    bottom = np.stack([np.linspace(hem, -hem, 24), length + 0.025 * np.sin(np.linspace(0, np.pi, 24))], axis=1)
    side = smooth([(half, 0.22), (0.145, 0.40), (half + flare * 0.35, 0.60), (hem, length)], closed=False)
    parts = []
    if p["sleeves"] > 0:
        arm, cuff = sleeve(half + 0.02, p["sleeves"], 0.12, 48 + 30 * p["sleeves"])
        parts += [*both(arm, "body"), *both(cuff, "accent")]
        top = points((0.09, 0.0), (half, 0.04), (half + 0.01, 0.1))
    else:
        top = points((0.085, 0.0), (0.135, 0.005), (0.14, 0.1))
    right = np.concatenate([top, side])
    parts += [Part(np.concatenate([right, bottom, mirror(right)[::-1]]), "body")]
    parts += [Part(np.concatenate([bottom - np.array([0, 0.035]), bottom[::-1]]), "accent")]
    if p["neckline"] == 1:
        parts += [Part(points((-0.092, -0.01), (0.092, -0.01), (0, 0.2)), "hole")]
    else:
        parts += [Part(rounded(0, -0.03, 0.088, 0.11, 3), "hole")]
    if p["waist"] == 1:
        parts += [Part(points((-0.148, 0.37), (0.148, 0.37), (0.15, 0.43), (-0.15, 0.43)), "accent")]
        parts += [Part(rounded(0, 0.4, 0.035, 0.03, 6), "metal")]
    return Drawing(tuple(parts), {"chest": (0.07, 0.22, 0.04), "hem": (hem * 0.45, length * 0.8, 0.065)})


def hat(p: Shape) -> Drawing:
    height, brim = p["crown"], p["brim"]
    if p["style"] == 0:  # cap, seen from the side
        crown = smooth(
            [
                (-0.3, 0),
                (-0.29, -height * 0.6),
                (-0.1, -height),
                (0.14, -height * 0.92),
                (0.28, -height * 0.5),
                (0.3, 0),
                (0, 0.03),
            ]
        )
        peak = smooth([(0.2, -0.04), (0.34, -0.05), (0.38 + brim, 0.04), (0.36 + brim, 0.08), (0.25, 0.04)])
        parts = [Part(crown, "body"), Part(peak, "accent"), Part(ellipse(-0.0, -height * 0.99, 0.025, 0.018, 12), "accent")]
        return Drawing(tuple(parts), {"front": (0.1, -height * 0.45, 0.075), "side": (-0.13, -height * 0.4, 0.06)})
    if p["style"] == 1:  # brimmed
        rim = 0.3 + brim
        crown = smooth(
            [
                (-0.22, 0),
                (-0.21, -height * 0.7),
                (-0.15, -height),
                (0, -height * 0.93),
                (0.15, -height),
                (0.21, -height * 0.7),
                (0.22, 0),
            ]
        )
        parts = [Part(ellipse(0, 0.03, rim, 0.08), "main"), Part(ellipse(0, 0.015, rim, 0.07), "body"), Part(crown, "body")]
        parts += [Part(points((-0.222, -0.085), (0.222, -0.085), (0.226, 0.02), (-0.226, 0.02)), "accent")]
        return Drawing(tuple(parts), {"front": (0, -height * 0.55, 0.06), "side": (-0.12, -height * 0.5, 0.05)})
    dome = smooth(
        [(-0.27, 0), (-0.26, -height * 0.6), (-0.14, -height * 1.05), (0.14, -height * 1.05), (0.26, -height * 0.6), (0.27, 0)]
    )
    parts = [Part(dome, "body"), Part(rounded(0, 0.0, 0.285, 0.05 + brim * 0.25, 7), "accent")]
    parts += [Part(ellipse(0, -height * 1.18, 0.04 + brim * 0.3, 0.04 + brim * 0.3, 24), "accent")]  # beanie with a bobble
    return Drawing(tuple(parts), {"front": (0, -height * 0.55, 0.075), "side": (-0.13, -height * 0.5, 0.055)})


def boot(p: Shape) -> Drawing:
    shaft, heel, toe = p["shaft"], p["heel"], p["toe"]
    tip = 0.42 + toe
    sole_y = 0.0
    upper = smooth(
        [
            (-0.14, -shaft),
            (0.13, -shaft),
            (0.12, -0.34),
            (0.17, -0.24),
            (0.32, -0.17),
            (tip, -0.05 - 0.05 * (toe < 0.04)),
            (tip - 0.03, sole_y),
            (0.1, sole_y),
            (-0.15, sole_y),
            (-0.17, -0.14),
            (-0.14, -0.34),
        ],
        steps=5,
    )
    parts = [Part(upper, "body")]
    parts += [Part(smooth([(tip - 0.15, -0.135), (tip - 0.02, -0.07), (tip - 0.02, sole_y), (tip - 0.17, sole_y)]), "accent")]
    lift = heel * 0.55
    sole = points((-0.17, -0.015), (tip - 0.02, -0.015), (tip + 0.005, 0.035), (0.22, 0.045), (0.06, 0.05 - 0.0), (-0.17, 0.05))
    parts += [Part(sole, "dark")]
    width = 0.05 if heel > 0.14 else 0.16
    if heel > 0.03:
        parts += [
            Part(points((-0.17, 0.03), (-0.17 + width * 1.3, 0.03), (-0.16 + width, 0.05 + lift), (-0.165, 0.05 + lift)), "dark")
        ]
        parts += [
            Part(points((0.1, 0.03), (tip - 0.02, 0.03), (tip - 0.04, 0.05 + lift * 0.4), (0.16, 0.05 + lift * 0.4)), "dark")
        ]
    parts += [
        Part(points((-0.155, -shaft - 0.05), (0.15, -shaft - 0.05), (0.14, -shaft + 0.06), (-0.15, -shaft + 0.06)), "accent")
    ]
    if p["closure"] == 1:  # laces
        top = min(shaft - 0.1, 0.62)
        parts += [
            Part(ribbon(points((0.03, -y), (0.14 - 0.03 * (y > 0.33), -y - 0.03)), 0.022), "pale")
            for y in np.arange(0.26, top, 0.075)
        ]
    if p["closure"] == 2:  # buckle strap
        parts += [Part(points((-0.155, -0.33), (0.125, -0.36), (0.13, -0.29), (-0.15, -0.26)), "accent")]
        parts += [Part(rounded(0.04, -0.31, 0.04, 0.045, 6), "metal"), Part(rounded(0.04, -0.31, 0.02, 0.025, 6), "accent")]
    return Drawing(tuple(parts), {"ankle": (-0.06, -0.2, 0.055), "shaft": (-0.01, -shaft + 0.16, 0.06)})


def sneaker(p: Shape) -> Drawing:
    sole, collar = p["sole"], p["collar"]
    upper = smooth(
        [
            (-0.4, -collar),
            (-0.22, -collar + 0.05),
            (-0.08, -collar + 0.01),
            (0.02, -0.27),
            (0.26, -0.16),
            (0.45, -0.12),
            (0.48, 0.0),
            (0.1, 0.01),
            (-0.42, 0.0),
            (-0.43, -0.16),
        ],
        steps=5,
    )
    parts = [Part(upper, "body")]
    parts += [Part(smooth([(0.3, -0.145), (0.44, -0.12), (0.475, 0.0), (0.27, 0.0)]), "accent")]
    parts += [
        Part(smooth([(-0.42, -collar + 0.03), (-0.34, -collar + 0.05), (-0.31, -0.02), (-0.42, 0.0), (-0.43, -0.14)]), "accent")
    ]
    stripes = int(p["side"])
    parts += [
        Part(points((x, -0.02), (x + 0.035, -0.02), (x + 0.125, -0.2), (x + 0.09, -0.2)), "accent")
        for x in np.linspace(-0.2, -0.05, 3)[:stripes]
    ]
    if stripes == 0:
        parts += [Part(ribbon(smooth([(-0.27, -0.12), (-0.13, -0.04), (0.17, -0.16)], closed=False), 0.05, 0.01), "accent")]
    parts += [Part(smooth([(-0.09, -collar + 0.0), (0.0, -collar - 0.02), (0.1, -0.26), (0.03, -0.24)]), "shade")]
    parts += [
        Part(ribbon(points((0.0 + d, -0.29 + d * 0.42), (0.1 + d, -0.235 + d * 0.42)), 0.022), "pale")
        for d in (-0.03, 0.03, 0.09, 0.15)
    ]
    base = smooth([(-0.44, -0.02), (0, 0.0), (0.48, -0.02), (0.5, sole * 0.5), (0.45, sole), (-0.42, sole), (-0.46, sole * 0.5)])
    parts += [Part(base, "pale"), Part(points((-0.42, sole * 0.72), (0.46, sole * 0.72), (0.44, sole), (-0.41, sole)), "dark")]
    return Drawing(tuple(parts), {"heel": (-0.37, -0.14, 0.04), "side": (0.17, -0.07, 0.045)})


SILHOUETTES: dict[str, Callable[[Shape], Drawing]] = {
    "t-shirt": t_shirt,
    "hoodie": hoodie,
    "pants": pants,
    "skirt": skirt,
    "dress": dress,
    "hat": hat,
    "boot": boot,
    "sneaker": sneaker,
}
