"""The perceptual fingerprint of an image: 256-bit DCT hash, colour signature, quality."""

# Letters: N, M images; 8 dihedral variants; 32 hash bytes; 48 colour bytes (4 x 4 cells x 3 channels).

from dataclasses import dataclass

import numpy as np

from serve.vision.spec import DecodeLimits

HASH_KIND = "dct256"
HASH_VERSION = 1
HASH_BYTES = 32
COLOUR_BYTES = 48


@dataclass(frozen=True)
class Fingerprint:
    """Row v is the image seen under dihedral variant v; row 0 = as it is. A catalog stores row 0."""

    hashes: np.ndarray  # (8, 32) uint8
    colours: np.ndarray  # (8, 48) uint8
    quality: float  # 0 (flat) .. 100


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """Of a decoded image, (H, W, 3) uint8 RGB."""
    raise NotImplementedError


def fingerprint_bytes(data: bytes, limits: DecodeLimits) -> Fingerprint:
    """Of encoded bytes, from a reduced-scale decode. Raises ImageError."""
    raise NotImplementedError


def hamming(hashes_N32: np.ndarray, hashes_M32: np.ndarray) -> np.ndarray:
    """Differing bits, (N, M) int32."""
    raise NotImplementedError


def colour_distance(colours_N48: np.ndarray, others_48: np.ndarray) -> np.ndarray:
    """Between each of N signatures and one signature (48,) or N of them (N, 48): (N,) float32."""
    raise NotImplementedError
