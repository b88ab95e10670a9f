"""Silhouettes of things: bags, home and electronics, from shape parameters (see wear.py)."""

from collections.abc import Callable

import numpy as np

from jobs.render.geometry import arc, ellipse, mirror, points, ribbon, rounded, smooth, symmetric
from jobs.render.wear import Drawing, Part, Shape, both


def handbag(p: Shape) -> Drawing:
    half, height = p["width"] / 2, p["height"]
    side = points(
        (half * 0.84, -0.005), (half * 0.9, 0.02), (half, height * 0.6), (half * 1.04, height * 0.96), (half * 0.98, height)
    )
    body = symmetric(smooth([(float(x), float(y)) for x, y in side], closed=False))
    parts = [Part(ribbon(arc(0, 0.03, half * 0.5, p["handle"], 180, 360), 0.035), "accent")]
    parts += [Part(body, "body")]
    if p["closure"] == 1:  # flap
        parts += [
            Part(
                smooth(
                    [
                        (half * 0.87, -0.005),
                        (half * 0.93, height * 0.3),
                        (0, height * 0.55),
                        (-half * 0.93, height * 0.3),
                        (-half * 0.87, -0.005),
                        (0, -0.01),
                    ],
                    steps=8,
                ),
                "accent",
            )
        ]
        parts += [Part(rounded(0, height * 0.5, 0.035, 0.03, 5), "metal")]
    elif p["closure"] == 2:  # two belts
        parts += both(
            points((half * 0.42, 0), (half * 0.58, 0), (half * 0.6, height * 0.7), (half * 0.44, height * 0.7)), "accent"
        )
        parts += both(rounded(half * 0.51, height * 0.42, half * 0.12, 0.03, 5), "metal")
    else:  # zip
        parts += [Part(points((-half * 0.88, 0.0), (half * 0.88, 0.0), (half * 0.9, 0.05), (-half * 0.9, 0.05)), "accent")]
        parts += [Part(rounded(half * 0.75, 0.06, 0.014, 0.04, 4), "metal")]
    return Drawing(tuple(parts), {"front": (0, height * 0.76, 0.065), "corner": (half * 0.68, height * 0.82, 0.045)})


def backpack(p: Shape) -> Drawing:
    half, height = p["width"] / 2, p["height"]
    parts = both(
        ribbon(
            smooth(
                [(half * 0.7, 0.12), (half + 0.09, height * 0.4), (half + 0.06, height * 0.75), (half * 0.8, height * 0.95)],
                closed=False,
            ),
            0.05,
        ),
        "accent",
    )
    parts += [Part(ribbon(arc(0, 0.01, 0.08, 0.09, 180, 360), 0.03), "accent")]
    parts += [Part(rounded(0, height / 2, half, height / 2, p["corners"]), "body")]
    parts += [Part(ribbon(arc(0, height * 0.36, half * 0.8, height * 0.27, 180, 360), 0.018), "dark")]
    if p["pockets"] == 2:
        parts += both(rounded(half * 0.48, height * 0.74, half * 0.38, height * 0.17, 6), "accent")
    elif p["pockets"] == 1:
        parts += [Part(rounded(0, height * 0.73, half * 0.76, height * 0.19, 6), "accent")]
        parts += [
            Part(
                points(
                    (-half * 0.7, height * 0.61),
                    (half * 0.7, height * 0.61),
                    (half * 0.7, height * 0.63),
                    (-half * 0.7, height * 0.63),
                ),
                "dark",
            )
        ]
    else:  # roll top with a strap
        parts += [Part(rounded(0, 0.04, half * 0.95, 0.06, 8), "accent")]
        parts += [Part(points((-0.03, 0.05), (0.03, 0.05), (0.03, height * 0.8), (-0.03, height * 0.8)), "accent")]
        parts += [Part(rounded(0, height * 0.72, 0.045, 0.035, 6), "metal")]
    return Drawing(tuple(parts), {"top": (0, height * 0.33, 0.07), "side": (-half * 0.62, height * 0.42, 0.05)})


def mug(p: Shape) -> Drawing:
    top, bottom, height = 0.26, 0.26 * p["taper"], p["height"]
    if p["handle"] == 0:
        path = arc(top * 0.9, height * 0.48, 0.19, height * 0.28, -95, 95)
    elif p["handle"] == 1:
        path = points(
            (top * 0.85, height * 0.18), (top + 0.17, height * 0.18), (top + 0.17, height * 0.74), (top * 0.8, height * 0.74)
        )
    else:
        path = smooth(
            [(top * 0.9, height * 0.15), (top + 0.2, height * 0.1), (top + 0.14, height * 0.45), (top * 0.85, height * 0.68)],
            closed=False,
        )
    wall = smooth([(top, 0.0), ((top + bottom) / 2 + 0.012, height * 0.55), (bottom, height - 0.03)], closed=False)
    base = arc(0, height - 0.03, bottom, 0.05, 0, 180)
    parts = [Part(ribbon(path, 0.055), "accent")]
    parts += [Part(np.concatenate([wall, base, mirror(wall)[::-1]]), "body")]
    parts += [Part(ellipse(0, 0.0, top, 0.06), "accent"), Part(ellipse(0, 0.006, top * 0.9, 0.045), "shade")]
    return Drawing(tuple(parts), {"front": (0, height * 0.52, 0.11), "low": (-0.08, height * 0.74, 0.06)})


def bottle(p: Shape) -> Drawing:
    half, neck, shoulder = p["body"] / 2, p["neck"], p["shoulders"]
    right = [
        (0.065, 0.06),
        (0.065, neck),
        (half * 0.75, neck + shoulder * 0.6),
        (half, neck + shoulder),
        (half, 0.93),
        (half * 0.9, 0.985),
    ]
    outline = symmetric(np.concatenate([points(*right[:2]), smooth(right[1:4], closed=False), points(*right[4:])]))
    parts = [Part(outline, "body")]
    label_y = neck + shoulder + 0.06
    parts += [
        Part(points((-half, label_y), (half, label_y), (half, label_y + p["label"]), (-half, label_y + p["label"])), "accent")
    ]
    if p["cap"] == 0:
        parts += [Part(rounded(0, 0.03, 0.08, 0.06, 8), "dark")]
    elif p["cap"] == 1:
        parts += [
            Part(ribbon(arc(0, 0.0, 0.075, 0.09, 180, 360), 0.025), "metal"),
            Part(rounded(0, 0.035, 0.085, 0.045, 8), "metal"),
        ]
    else:
        parts += [Part(points((-0.055, 0.08), (0.055, 0.08), (0.07, -0.05), (-0.07, -0.05)), "wood")]
    return Drawing(tuple(parts), {"label": (0, label_y + p["label"] / 2, min(0.07, p["label"] * 0.4)), "low": (0, 0.88, 0.05)})


def vase(p: Shape) -> Drawing:
    belly, at, mouth = p["belly"], p["form"], p["mouth"]
    right = smooth(
        [
            (mouth, 0.0),
            (mouth * 0.72, 0.09),
            (belly * 0.82, at * 0.55 + 0.06),
            (belly, at),
            (belly * 0.8, (at + 0.86) / 2),
            (0.1, 0.86),
            (0.13, 0.92),
        ],
        closed=False,
    )
    parts = []
    if p["handles"] == 1:
        parts += both(
            ribbon(smooth([(mouth * 0.75, 0.08), (belly + 0.1, at * 0.45), (belly * 0.9, at)], closed=False), 0.04), "accent"
        )
    parts += [Part(symmetric(right), "body")]
    parts += [Part(ellipse(0, 0.0, mouth, 0.035), "accent"), Part(ellipse(0, 0.004, mouth * 0.8, 0.022), "dark")]
    parts += [Part(points((-0.13, 0.88), (0.13, 0.88), (0.14, 0.93), (-0.14, 0.93)), "accent")]
    return Drawing(tuple(parts), {"belly": (0, at, 0.085), "low": (0, (at + 0.86) / 2 + 0.02, 0.055)})


def lamp(p: Shape) -> Drawing:
    stem, base, wide = p["stem"], p["base"], p["shade"]
    parts = []
    if p["foot"] == 1:  # tripod
        parts += [Part(ribbon(points((0, 0.34), (x, 0.38 + stem)), 0.03, 0.02), "wood") for x in (-base, 0.0, base)]
    elif p["foot"] == 2:  # round body
        parts += [
            Part(points((-0.02, 0.3), (0.02, 0.3), (0.02, 0.38 + stem), (-0.02, 0.38 + stem)), "metal"),
            Part(ellipse(0, 0.36 + stem * 0.55, base * 0.9, stem * 0.5), "accent"),
            Part(rounded(0, 0.38 + stem, base * 0.6, 0.025, 8), "dark"),
        ]
    else:
        parts += [Part(points((-0.014, 0.3), (0.014, 0.3), (0.014, 0.38 + stem), (-0.014, 0.38 + stem)), "metal")]
        parts += [Part(ellipse(0, 0.38 + stem, base, 0.04), "accent")]
    if p["form"] == 0:  # cone
        parts += [Part(points((-wide * 0.42, 0.0), (wide * 0.42, 0.0), (wide, 0.34), (-wide, 0.34)), "body")]
    elif p["form"] == 1:  # drum
        parts += [Part(points((-wide * 0.85, 0.02), (wide * 0.85, 0.02), (wide * 0.88, 0.34), (-wide * 0.88, 0.34)), "body")]
    else:  # dome
        parts += [Part(np.concatenate([arc(0, 0.33, wide, 0.31, 180, 360), points((wide, 0.34), (-wide, 0.34))]), "body")]
    edge = {0: 1.0, 1: 0.88, 2: 1.0}[int(p["form"])] * wide
    parts += [Part(points((-edge, 0.315), (edge, 0.315), (edge, 0.345), (-edge, 0.345)), "accent")]
    return Drawing(tuple(parts), {"shade": (0, 0.19, 0.075), "edge": (-wide * 0.42, 0.24, 0.045)})


def headphones(p: Shape) -> Drawing:
    band, cup, power = p["band"], p["cups"], p["form"]
    parts = [Part(ribbon(arc(0, 0.36, 0.36, 0.36, 172, 368, 40), band), "body")]
    parts += [Part(ribbon(arc(0, 0.36, 0.36 - band * 0.55, 0.36 - band * 0.55, 225, 315, 24), 0.02), "accent")]
    parts += both(rounded(0.335, 0.48, cup * 0.62, cup * 1.05, power), "dark")
    parts += both(rounded(0.40, 0.48, cup * 0.75, cup * 1.12, power), "body")
    parts += both(rounded(0.41, 0.48, cup * 0.5, cup * 0.78, power), "accent")
    if p["microphone"] == 1:
        parts += [
            Part(ribbon(smooth([(-0.38, 0.55), (-0.33, 0.74), (-0.12, 0.82)], closed=False), 0.025), "dark"),
            Part(ellipse(-0.1, 0.82, 0.05, 0.035), "accent"),
        ]
    return Drawing(tuple(parts), {"right cup": (0.41, 0.48, cup * 0.4), "left cup": (-0.41, 0.48, cup * 0.4)})


def watch(p: Shape) -> Drawing:
    strap, radius, power = p["strap"], p["case"], p["face"]
    parts = [
        Part(points((-strap, -0.56), (strap, -0.56), (strap * 1.2, 0), (strap, 0.56), (-strap, 0.56), (-strap * 1.2, 0)), "body")
    ]
    parts += [Part(rounded(0, -0.52, strap * 1.12, 0.03, 8), "metal")]
    parts += [Part(ellipse(0, y, 0.013, 0.013, 10), "dark") for y in (0.4, 0.45, 0.5)]
    parts += [Part(rounded(radius + 0.02, 0, 0.03, 0.03, 4), "metal"), Part(rounded(0, 0, radius, radius, power), "metal")]
    parts += [Part(rounded(0, 0, radius * 0.86, radius * 0.86, power), "accent")]
    dial = radius * 0.74
    parts += [Part(rounded(0, 0, dial, dial, power), "dark" if p["dial"] == 1 else "pale")]
    ink = "pale" if p["dial"] == 1 else "dark"
    if p["dial"] == 2:  # digits in blocks
        parts += [
            Part(rounded(x, -0.01, dial * 0.13, dial * 0.24, 6), "dark")
            for x in (-dial * 0.5, -dial * 0.17, dial * 0.17, dial * 0.5)
        ]
    else:
        marks = np.radians(np.arange(0, 360, 30))
        parts += [
            Part(ellipse(dial * 0.85 * np.cos(a), dial * 0.85 * np.sin(a), dial * 0.06, dial * 0.06, 8), ink) for a in marks
        ]
        parts += [Part(ribbon(points((0, 0), (dial * 0.4, -dial * 0.32)), dial * 0.12), ink)]
        parts += [Part(ribbon(points((0, 0), (-dial * 0.2, -dial * 0.66)), dial * 0.08), ink)]
    return Drawing(
        tuple(parts), {"strap": (0, radius + strap * 0.85, strap * 0.7), "upper strap": (0, -radius - strap * 0.85, strap * 0.7)}
    )


SILHOUETTES: dict[str, Callable[[Shape], Drawing]] = {
    "handbag": handbag,
    "backpack": backpack,
    "mug": mug,
    "bottle": bottle,
    "vase": vase,
    "lamp": lamp,
    "headphones": headphones,
    "watch": watch,
}
