"""When a near hash is an exact answer, and how that rule is calibrated on the catalog's own images.

The release builder calls `distortions` and `calibrate`; whole search calls `accept`.
"""

# Letters: N catalog images, C candidates of one query (rows within the looked-up radius).

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from serve.vision.hash import Fingerprint, colour_distance, hamming
from serve.vision.image import decode_image
from serve.vision.spec import DecodeLimits

ORIGINAL = "original"
JPEG_QUALITY = 90
LOW_JPEG_QUALITY = 60
TURNS = {
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "turned_90": Image.Transpose.ROTATE_90,
    "turned_180": Image.Transpose.ROTATE_180,
    "turned_270": Image.Transpose.ROTATE_270,
}
TIE_MARGIN = 0.3  # of `closeness`: two catalog rows of one photo differ by less, other colours by more (see tests)
NOISE_QUANTILE = 0.999  # of what re-encoding does: rows nearer than this show the same picture
SLACK = 2.0  # times that noise: no threshold is wider, even where no other product is near enough to forbid it
COLOUR_STEP = 1.0  # of a stored colour signature: noise is at least this
MIN_QUALITY = 1.0  # a hundredth of a grey level: flat images have no hash

Lookup = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]  # see HashTable.lookup


@dataclass(frozen=True)
class HashExit:
    """Thresholds of the hash stage, and the two shares they were measured to give."""

    max_distance: int  # bits of 256
    max_colour_distance: float  # see `colour_distance`
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
    image = Image.fromarray(decode_image(data, limits))
    halved = image.resize((-(-image.width // 2), -(-image.height // 2)), Image.Resampling.LANCZOS)
    yield ORIGINAL, data
    yield "jpeg_60", _jpeg(image, LOW_JPEG_QUALITY)
    yield "halved", _jpeg(halved, JPEG_QUALITY)
    for name, turn in TURNS.items():
        yield name, _jpeg(image.transpose(turn), JPEG_QUALITY)
    yield "halved_mirrored_jpeg_60", _jpeg(halved.transpose(TURNS["mirrored"]), LOW_JPEG_QUALITY)


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
    if quality < hash_exit.min_quality:
        return np.empty(0, np.int64)
    (places,) = np.nonzero((distances_C <= hash_exit.max_distance) & (colour_distances_C <= hash_exit.max_colour_distance))
    apart = distances_C[places] / max(hash_exit.max_distance, 1) + colour_distances_C[places] / hash_exit.max_colour_distance
    order = np.argsort(apart, kind="stable")
    exact: np.ndarray = places[order[apart[order] <= apart.min(initial=np.inf) + TIE_MARGIN]]
    return exact


def calibrate(
    hashes_N32: np.ndarray,
    colours_N48: np.ndarray,
    owners_N: Sequence[str] | np.ndarray,
    probes: Sequence[Probe],
    *,
    max_distance: int,
    target_false_accept: float,
    lookup: Lookup | None = None,
) -> HashExit:
    """The rule that finds most probes while at most `target_false_accept` of foreign photos pass.

    `probes` holds every distortion, the original too, of a sample of catalog images. A foreign photo is a probe whose own
    product is left out of the catalog, and with it every row that shows the same picture: no farther from the original
    than re-encoding moves a picture. `owners_N`: the product of each image.
    `lookup` (hashes_832, radius) -> (rows, variants, distances); none = compare with all.
    """
    if not any(probe.distortion == ORIGINAL for probe in probes):
        raise ValueError(f"{len(probes)} probes, none of them {ORIGINAL!r}; the hash exit is calibrated on catalog images")
    find = lookup or (lambda hashes_832, radius: _scan(hashes_N32, hashes_832, radius))
    queries = [_Query.of(probe, find, colours_N48, np.asarray(owners_N), max_distance) for probe in probes]
    genuine = [query for query in queries if not query.is_original]
    noise, colour_noise = _noise(genuine)
    same_picture = defaultdict(set, {q.row: q.rows_within(noise, colour_noise) for q in queries if q.is_original})
    foreign = [query.without(same_picture[query.row]) for query in queries]
    min_quality = max(MIN_QUALITY, 0.5 * min((query.quality for query in genuine if query.to_itself()), default=MIN_QUALITY))
    best: HashExit | None = None
    for distance, colour in _thresholds(foreign, max_distance, SLACK * colour_noise, target_false_accept):
        rule = HashExit(distance, colour, min_quality, 0.0, 0.0)
        found_frac = float(np.mean([query.finds_first(rule) for query in genuine]))
        if best is None or found_frac >= best.found_frac:  # of equal ones the wider radius
            best = replace(rule, found_frac=found_frac)
    assert best is not None
    false_accepts = [len(accept(best, query.distances, query.colour_distances, query.quality)) > 0 for query in foreign]
    return replace(best, false_accept_frac=float(np.mean(false_accepts)))


@dataclass(frozen=True)
class _Query:
    """A probe and its candidates in the catalog."""

    row: int
    is_original: bool
    quality: float
    rows: np.ndarray  # (C,) int64
    is_own: np.ndarray  # (C,) bool: same product
    distances: np.ndarray  # (C,) bits
    colour_distances: np.ndarray  # (C,) float32

    @classmethod
    def of(cls, probe: Probe, find: Lookup, colours_N48: np.ndarray, owners_N: np.ndarray, radius: int) -> "_Query":
        rows, variants, distances = find(probe.fingerprint.hashes, radius)
        colours = colour_distance(colours_N48[rows], probe.fingerprint.colours[variants])
        is_own = owners_N[rows] == owners_N[probe.row]
        return cls(probe.row, probe.distortion == ORIGINAL, probe.fingerprint.quality, rows, is_own, distances, colours)

    def to_itself(self) -> list[tuple[float, float]]:
        """(distance, colour distance) to the row the probe was made from, where that is within the radius."""
        places = np.flatnonzero(self.rows == self.row)
        nearest = places[np.argsort(self.distances[places], kind="stable")[:1]]
        return [(float(self.distances[at]), float(self.colour_distances[at])) for at in nearest]

    def rows_within(self, distance: float, colour: float) -> set[int]:
        return set(self.rows[(self.distances <= distance) & (self.colour_distances <= colour)].tolist())

    def without(self, rows: set[int]) -> "_Query":
        """As if the catalog had neither this product nor these rows."""
        keep = ~self.is_own & ~np.isin(self.rows, list(rows))
        return replace(
            self,
            rows=self.rows[keep],
            is_own=self.is_own[keep],
            distances=self.distances[keep],
            colour_distances=self.colour_distances[keep],
        )

    def finds_first(self, rule: HashExit) -> bool:
        """The best accepted candidate is of the right product."""
        places = accept(rule, self.distances, self.colour_distances, self.quality)
        return len(places) > 0 and bool(self.is_own[places[0]])


def _noise(genuine: Sequence[_Query]) -> tuple[float, float]:
    """What re-encoding does to a picture: its distance and colour distance to itself, at NOISE_QUANTILE."""
    to_itself = [pair for query in genuine for pair in query.to_itself()]
    noise, colour_noise = np.quantile(to_itself or [(0.0, 0.0)], NOISE_QUANTILE, axis=0, method="higher")
    return float(noise), max(float(colour_noise), COLOUR_STEP)


def _thresholds(
    foreign: Sequence[_Query], max_distance: int, max_colour: float, target_false_accept: float
) -> Iterator[tuple[int, float]]:
    """(radius, colour limit) pairs, radius rising: the widest colour limit that each radius allows, each limit once.

    A limit stays a tenth below the first foreign photo too many.
    """
    num_allowed = int(target_false_accept * len(foreign))
    allowed: dict[float, int] = {}
    for radius in range(max_distance + 1):
        nearest = [float(q.colour_distances[q.distances <= radius].min(initial=np.inf)) for q in foreign]
        ranked = np.sort(nearest)
        first_too_many = ranked[num_allowed] if num_allowed < len(ranked) else np.inf
        allowed[min(max_colour, float(first_too_many) * 0.9)] = radius
    for colour, radius in allowed.items():
        yield radius, colour


def _scan(hashes_N32: np.ndarray, hashes_832: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every row within the radius under its nearest variant: rows, variants, distances."""
    distances_8N = hamming(hashes_832, hashes_N32)
    nearest_N = distances_8N.argmin(axis=0)
    distances_N = distances_8N[nearest_N, np.arange(len(hashes_N32))]
    rows = np.flatnonzero(distances_N <= radius)
    return rows, nearest_N[rows], distances_N[rows]


def _jpeg(image: Image.Image, quality: int) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()
