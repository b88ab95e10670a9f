"""What a crop is: the encoder's head and a vote of the nearest labelled catalog vectors, fused and calibrated.

The vote needs no training: a bundle whose encoder has no head, or was trained on other categories, still predicts the shop's own.
How much each side counts, and how sharp the result is, was fitted on photos with known answers (jobs.calibrate_categories).

Letters: N crops, D numbers of an embedding, P prototypes, H labels of the head, C categories.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from serve.vision.spec import BundleError, CategoryConfig

PROTOTYPES_FILE = "prototypes.safetensors"
VECTORS, ROWS = "vectors", "rows"  # (P, D) float16 unit vectors, and (P,) int32 rows in CategoryConfig.labels


class CategoryPredictor(Protocol):
    """Embeddings, and the head's opinion where there is a head, to probabilities."""

    labels: tuple[str, ...]

    def predict(self, embeddings_ND: np.ndarray, head_NH: np.ndarray | None) -> np.ndarray | None:
        """(N, C) float32 probabilities in the order of `labels`; None where nothing is known of categories."""
        ...


class HeadAlone:
    """The head's own probabilities, as they are."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    def predict(self, embeddings_ND: np.ndarray, head_NH: np.ndarray | None) -> np.ndarray | None:
        return head_NH


class FusedVote:
    """Vote and head. Categories are those of the prototypes, then those that only the head knows."""

    def __init__(self, config: CategoryConfig, vectors_PD: np.ndarray, rows_P: np.ndarray, head_labels: tuple[str, ...]) -> None:
        self.config, self.vectors_PD, self.rows_P = config, vectors_PD, rows_P
        self.labels = (*config.labels, *(label for label in head_labels if label not in config.labels))
        self.head_columns = np.array([self.labels.index(label) for label in head_labels], np.int64)

    def predict(self, embeddings_ND: np.ndarray, head_NH: np.ndarray | None) -> np.ndarray:
        config = self.config
        cosines_NP = embeddings_ND @ self.vectors_PD.T
        vote_NC = vote(cosines_NP, self.rows_P, len(self.labels), config.neighbours, config.vote_temperature)
        mixed_NC = fuse(vote_NC, self.on_all_labels(head_NH), config.head_weight)
        return sharpen(mixed_NC, config.temperature, config.floor)

    def on_all_labels(self, head_NH: np.ndarray | None) -> np.ndarray | None:
        """The head's probabilities in the columns of all labels: (N, C)."""
        if head_NH is None:
            return None
        head_NC = np.zeros((len(head_NH), len(self.labels)), np.float32)
        head_NC[:, self.head_columns] = head_NH
        return head_NC


def vote(cosines_NP: np.ndarray, rows_P: np.ndarray, num_labels: int, neighbours: int, temperature: float) -> np.ndarray:
    """(N, C) float32 shares of the `neighbours` nearest prototypes, each weighing exp(cosine / temperature).

    The weighted nearest-neighbour classifier of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination" (CVPR 2018).
    """
    num_nearest = min(neighbours, cosines_NP.shape[1])
    nearest_NK = np.argpartition(-cosines_NP, num_nearest - 1, axis=1)[:, :num_nearest]
    cosines_NK = np.take_along_axis(cosines_NP, nearest_NK, axis=1)
    weights_NK = np.exp((cosines_NK - cosines_NK.max(axis=1, keepdims=True)) / temperature)
    shares_NC = np.zeros((len(cosines_NP), num_labels), np.float32)
    np.add.at(shares_NC, (np.arange(len(cosines_NP))[:, None], rows_P[nearest_NK]), weights_NK)
    shares: np.ndarray = shares_NC / shares_NC.sum(axis=1, keepdims=True)
    return shares


def fuse(vote_NC: np.ndarray, head_NC: np.ndarray | None, head_weight: float) -> np.ndarray:
    """Linear pool of both: a category that one side does not know keeps the other's share."""
    return vote_NC if head_NC is None else (1 - head_weight) * vote_NC + head_weight * head_NC


def sharpen(probabilities_NC: np.ndarray, temperature: float, floor: float) -> np.ndarray:
    """p ** (1 / temperature), normalised (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017), over a `floor`.

    The floor is spread over all categories alike: the share of photos of something that no neighbour speaks for.
    """
    powered_NC = (probabilities_NC / probabilities_NC.max(axis=1, keepdims=True)) ** (1 / temperature)
    sharp_NC = powered_NC / powered_NC.sum(axis=1, keepdims=True)
    calibrated: np.ndarray = ((1 - floor) * sharp_NC + floor / sharp_NC.shape[1]).astype(np.float32)
    return calibrated


def build_predictor(config: CategoryConfig | None, folder: Path, head_labels: tuple[str, ...], dim: int) -> CategoryPredictor:
    """The predictor of the bundle in `folder`, whose encoder makes vectors of `dim` numbers. Raises BundleError."""
    if config is None:
        return HeadAlone(head_labels)
    path = folder / config.weights
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a whole safetensors file: {error}") from error
    if tensors.keys() != {VECTORS, ROWS}:
        raise BundleError(f"{path}: holds {', '.join(sorted(tensors))}; expected {VECTORS} and {ROWS}")
    vectors_PD, rows_P = tensors[VECTORS].astype(np.float32), tensors[ROWS]
    if vectors_PD.ndim != 2 or vectors_PD.shape[1] != dim or not np.isfinite(vectors_PD).all():
        raise BundleError(f"{path}: vectors of shape {vectors_PD.shape}; expected finite ones of {dim} numbers, as the encoder's")
    if rows_P.shape != vectors_PD.shape[:1] or not len(rows_P) or not ((rows_P >= 0) & (rows_P < len(config.labels))).all():
        raise BundleError(f"{path}: rows do not name one of {len(config.labels)} labels for each of {len(vectors_PD)} vectors")
    return FusedVote(config, vectors_PD, rows_P, head_labels)
