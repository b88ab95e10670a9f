"""Outlines: (N, 2) float64 arrays of x, y in product units (about 1 across, y down, x = 0 is the middle)."""

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]


def points(*corners: Point) -> np.ndarray:
    """A polygon from its corners."""
    return np.asarray(corners, dtype=np.float64)


def ellipse(cx: float, cy: float, rx: float, ry: float, num: int = 40) -> np.ndarray:
    """An ellipse around (cx, cy)."""
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def rounded(cx: float, cy: float, rx: float, ry: float, power: float = 5.0, num: int = 56) -> np.ndarray:
    """A superellipse: `power` 2 is an ellipse, larger is a box with round corners."""
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    x = np.sign(cos) * np.abs(cos) ** (2 / power)
    y = np.sign(sin) * np.abs(sin) ** (2 / power)
    return np.stack([cx + rx * x, cy + ry * y], axis=1)


def smooth(corners: Sequence[Point], steps: int = 6, closed: bool = True) -> np.ndarray:
    """Catmull-Rom curve through the corners, `steps` points a segment."""
    p = np.asarray(corners, dtype=np.float64)
    if closed:
        before, start, end, after = np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)
    else:
        padded = np.concatenate([p[:1], p, p[-1:]])
        before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    before, start, end, after = (a[:, None, :] for a in (before, start, end, after))
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def mirror(outline: np.ndarray) -> np.ndarray:
    """The outline reflected in x = 0."""
    return np.asarray(outline * np.array([-1.0, 1.0]))


def symmetric(right: np.ndarray) -> np.ndarray:
    """A closed outline from its right half, given from top to bottom."""
    return np.concatenate([right, mirror(right)[::-1]])


def ribbon(path: np.ndarray, width: float, end_width: float | None = None) -> np.ndarray:
    """A band of `width` along an open path, narrowing to `end_width`."""
    direction = np.gradient(path, axis=0)
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    half = np.linspace(width, width if end_width is None else end_width, len(path))[:, None] / 2
    return np.concatenate([path + normal * half, (path - normal * half)[::-1]])


def arc(cx: float, cy: float, rx: float, ry: float, start_deg: float, end_deg: float, num: int = 24) -> np.ndarray:
    """An open piece of an ellipse; 0 degrees points right, 90 down."""
    angle = np.radians(np.linspace(start_deg, end_deg, num))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)
