"""Vectors of photos by users that an encoder learned from: they tell which products come up whatever is asked (index.hubness)."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from serve.vision.spec import BundleConfig, BundleError

QUERIES_FILE = "queries.safetensors"
VECTORS = "vectors"  # (B, width of the encoder) float16 unit vectors


def load_queries(folder: Path, config: BundleConfig, dim: int) -> np.ndarray | None:
    """(B, dim) float32 unit vectors of the bundle in `folder`; None where it has none. Raises BundleError."""
    if config.queries is None:
        return None
    path = folder / config.queries.weights
    try:
        vectors_BD = load_file(path)[VECTORS].astype(np.float32)[:, :dim]
    except (OSError, KeyError, SafetensorError, IndexError) as error:
        raise BundleError(f"{path}: no vectors of queries can be read ({error}); train the encoder again") from error
    lengths_B = np.linalg.norm(vectors_BD, axis=1)
    if vectors_BD.shape[1] != dim or not len(vectors_BD) or not (np.isfinite(lengths_B) & (lengths_B > 0)).all():
        raise BundleError(f"{path}: shape {vectors_BD.shape}, expected finite vectors of width {dim}; train the encoder again")
    return np.asarray(vectors_BD / lengths_B[:, None])
