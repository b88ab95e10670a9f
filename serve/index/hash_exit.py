"""When a near hash is an exact answer, and how that rule is calibrated on the catalog's own images.

The release builder calls `distortions` and `calibrate`; whole search calls `accept`.
"""

# Letters: N catalog images, C candidates of one query, 32 hash bytes, 48 colour bytes.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serve.vision.hash import Fingerprint
from serve.vision.spec import DecodeLimits


@dataclass(frozen=True)
class HashExit:
    """Thresholds of the hash stage, and the two shares they were measured to give."""

    max_distance: int  # bits of 256
    max_colour_distance: float
    min_quality: float  # of the query's fingerprint, 0..100
    false_accept_frac: float  # of queries whose product is not in the catalog
    found_frac: float  # of re-encoded catalog images: right product first


@dataclass(frozen=True)
class Probe:
    """A catalog image seen through one distortion: what a re-upload of it would bring."""

    row: int  # of the image in the catalog's hash arrays
    distortion: str  # "original", or a name of `distortions`
    fingerprint: Fingerprint


def distortions(data: bytes, limits: DecodeLimits) -> Iterator[tuple[str, bytes]]:
    """The image as it is ("original") and as re-uploads bring it: (name, encoded bytes). Raises ImageError."""
    raise NotImplementedError


def accept(
    hash_exit: HashExit,
    distances_C: np.ndarray,
    colour_distances_C: np.ndarray,
    quality: float,
) -> np.ndarray:
    """Places (int64) of the candidates that are exact answers, best first; empty when none is.

    `distances_C` int bits, `colour_distances_C` float32, both between a candidate and the query's row of the
    variant it was found under. Several are returned only where they can't be told apart (one photo, many products).
    """
    raise NotImplementedError


def calibrate(
    hashes_N32: np.ndarray,
    colours_N48: np.ndarray,
    product_ids: Sequence[str],
    probes: Sequence[Probe],
    *,
    max_distance: int,
    target_false_accept: float,
) -> HashExit:
    """The rule that finds most probes while at most `target_false_accept` of foreign photos pass.

    A foreign photo is a probe whose own product is left out of the catalog; pictures of other products that look
    the same as the probe's are left out too. `probes` holds every distortion of a sample of catalog images.
    """
    raise NotImplementedError
