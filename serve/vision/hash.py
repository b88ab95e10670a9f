"""The perceptual fingerprint of an image: 256-bit DCT hash, colour signature, quality; the same function on both sides.

The 16 x 16 lowest cosines are measured on the pixels of a reduced-scale decode themselves, over the exact extent of the
image. Resampling to a fixed square first moves a mirrored copy by up to 60 bits, this by 6 (547 catalog photos of 400 px).
"""

# Letters: N, M images; H, W rows and columns of pixels; F = 16 frequencies a side; G = 4 colour cells a side;
# 8 dihedral variants; 32 hash bytes; 48 colour bytes = G x G cells x (L, a, b).

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from serve.vision.image import Reduced, decode_reduced, dihedral

if TYPE_CHECKING:  # the guarded process imports no settings
    from serve.vision.spec import DecodeLimits

HASH_KIND = "dct256"
HASH_VERSION = 1
HASH_BYTES = 32
COLOUR_BYTES = 48
HASH_DECODE_PX = 64  # shorter side of the decode; 64, 128 and full size give the same bits within 4, 64 is the fastest
NUM_VARIANTS = 8

FREQUENCIES = 16  # a side: 0..15, so the mean is one of them; its bit is nearly always 1
CELLS = 4
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, what JPEG calls Y
STEPS_PER_LEVEL = 256.0  # coefficients are rounded to 1/256 grey level, so that the zeros of a symmetric image are zeros
FULL_QUALITY_LEVELS = 1.0  # a typical cosine of one grey level; re-encoding moves them by 0.01, at most 0.02

RGB_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
D65_WHITE = np.array([0.95047, 1.0, 1.08883])
XYZ_TO_LAB = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
LAB_OFFSET = np.array([-16.0, 128.0, 128.0])  # L 0..100 as it is, a and b moved to 0..255


# What a variant does to flat coefficients and cells: swapped axes swap them, a mirror flips the sign of every odd cosine.
ODD = np.arange(FREQUENCIES) % 2
VARIANTS = range(NUM_VARIANTS)
PLACES_FF = np.arange(FREQUENCIES**2).reshape(FREQUENCIES, FREQUENCIES)
COEFFICIENT_OF = np.stack([dihedral(PLACES_FF, variant & 4).ravel() for variant in VARIANTS])
SIGN_OF = np.stack([np.where(ODD[:, None] * (variant >> 1 & 1) ^ ODD * (variant & 1), -1, 1).ravel() for variant in VARIANTS])
CELL_OF = np.stack([dihedral(np.arange(COLOUR_BYTES).reshape(CELLS, CELLS, 3), variant).ravel() for variant in VARIANTS])


@dataclass(frozen=True)
class Fingerprint:
    """Row v is the image seen under dihedral variant v (see `image.dihedral`); row 0 = as it is, what a catalog stores."""

    hashes: np.ndarray  # (8, 32) uint8
    colours: np.ndarray  # (8, 48) uint8
    quality: float  # 0 (flat) .. 100: how far the cosines stand above what re-encoding does to them


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """Of a decoded image, (H, W, 3) uint8 RGB."""
    height, width, _ = pixels.shape
    return fingerprint_reduced(Reduced(pixels, (0.0, 0.0, width, height)))


def fingerprint_bytes(data: bytes, limits: "DecodeLimits") -> Fingerprint:
    """Of encoded bytes. Raises ImageError."""
    return fingerprint_reduced(decode_reduced(data, limits, HASH_DECODE_PX))


def fingerprint_reduced(image: Reduced) -> Fingerprint:
    """Of a reduced-scale decode and the exact extent of the image in it."""
    height, width, _ = image.pixels.shape
    x0, y0, x1, y1 = image.box
    of_rows, of_columns = _projections(height, y0, y1), _projections(width, x0, x1)
    bands = (of_rows @ image.pixels.reshape(height, width * 3)).reshape(-1, width, 3)
    levels_FF = bands[:FREQUENCIES] @ LUMA @ of_columns[:FREQUENCIES].T
    coefficients_FF = np.rint(levels_FF * STEPS_PER_LEVEL).astype(np.int32)
    cells_GG3 = of_columns[FREQUENCIES:] @ bands[FREQUENCIES:]
    typical = np.partition(np.abs(coefficients_FF), FREQUENCIES**2 // 2, axis=None)[FREQUENCIES**2 // 2] / STEPS_PER_LEVEL
    return Fingerprint(
        hashes=_hashes(coefficients_FF),
        colours=_lab(cells_GG3).ravel()[CELL_OF],
        quality=float(min(1.0, typical / FULL_QUALITY_LEVELS) * 100),
    )


def hamming(hashes_N32: np.ndarray, hashes_M32: np.ndarray) -> np.ndarray:
    """Differing bits of every pair, (N, M) int32."""
    words_N4 = np.ascontiguousarray(hashes_N32).view(np.uint64)
    words_M4 = np.ascontiguousarray(hashes_M32).view(np.uint64)
    distances_NM: np.ndarray = np.bitwise_count(words_N4[:, None] ^ words_M4[None]).sum(axis=2, dtype=np.int32)
    return distances_NM


def colour_distance(colours_N48: np.ndarray, others_N48: np.ndarray) -> np.ndarray:
    """CIE76 colour difference in the worst cell, (N,) float32, between N signatures and one (48,) or N (N, 48).

    The worst cell rather than the mean: recoloured goods on a white ground differ in a few cells only. 2.3 is just visible.
    """
    differences = colours_N48.astype(np.float32) - others_N48.astype(np.float32)
    distances_N: np.ndarray = np.sqrt(np.square(differences).reshape(len(differences), CELLS**2, 3).sum(axis=2).max(axis=1))
    return distances_N


@lru_cache(maxsize=4096)
def _projections(num_pixels: int, start: float, end: float) -> np.ndarray:
    """(F + G, num_pixels) float64: F cosines, then G box averages, over the extent start..end of a line of pixels."""
    pixel = np.arange(num_pixels)
    left, right = np.clip(pixel, start, end), np.clip(pixel + 1, start, end)
    covered, phase = (right - left) / (end - start), ((left + right) / 2 - start) / (end - start)
    frequency = np.arange(FREQUENCIES)[:, None]
    cosines = np.cos(np.pi * frequency * phase) * covered * np.where(frequency == 0, 1.0, np.sqrt(2.0))
    edges = np.linspace(start, end, CELLS + 1)
    overlap = np.clip(np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None]), 0, None)
    return np.concatenate([cosines, overlap * CELLS / (end - start)])


def _hashes(coefficients_FF: np.ndarray) -> np.ndarray:
    """(8, 32) uint8: a bit is 1 where a coefficient is above the variant's median."""
    seen_8K = coefficients_FF.ravel()[COEFFICIENT_OF] * SIGN_OF
    middle = seen_8K.shape[1] // 2 - 1
    median_81 = np.partition(seen_8K, middle, axis=1)[:, middle : middle + 1]
    return np.packbits(seen_8K > median_81, axis=1)


def _lab(cells_GG3: np.ndarray) -> np.ndarray:
    """sRGB 0..255 as CIELAB (D65), uint8 with steps of 1."""
    srgb = cells_GG3 / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ RGB_TO_XYZ.T / D65_WHITE
    compressed = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab: np.ndarray = np.rint(compressed @ XYZ_TO_LAB.T + LAB_OFFSET).clip(0, 255).astype(np.uint8)
    return lab
