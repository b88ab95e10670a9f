"""One vector out of a photo's and a text's: "this, but red"."""

import numpy as np


def fuse_query(image_D: np.ndarray, text_D: np.ndarray, weight: float) -> np.ndarray:
    """(D,) unit vector between two unit vectors of one space; `weight` of the text, 0..1.

    Raises ValueError where they cancel out: a sum without direction is near nothing.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: expected 0 to 1")
    mixed_D = (1 - weight) * np.asarray(image_D, np.float32) + weight * np.asarray(text_D, np.float32)
    length = float(np.linalg.norm(mixed_D))
    if length < 1e-6:
        raise ValueError("photo and text point in opposite directions")
    return np.asarray(mixed_D / length, np.float32)
