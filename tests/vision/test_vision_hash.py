"""The fingerprint: the same for the same picture, mirrored and turned ones in their own row, others far away."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve.vision.hash import (
    COLOUR_BYTES,
    HASH_BYTES,
    HASH_DECODE_PX,
    NUM_VARIANTS,
    Fingerprint,
    colour_distance,
    fingerprint,
    fingerprint_bytes,
    hamming,
)
from serve.vision.image import decode_image, dihedral
from serve.vision.spec import DecodeLimits

LIMITS = DecodeLimits()


def photo(seed: int, width: int = 323, height: int = 400) -> np.ndarray:
    """A picture with detail at several scales, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (3, 7, 19)]
    large = [np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float64) for layer in layers]
    return (large[0] * 0.5 + large[1] * 0.3 + large[2] * 0.2).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int = 90, **options: object) -> bytes:
    with io.BytesIO() as buffer:
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality, **options)
        return buffer.getvalue()


def apart(found: Fingerprint, other: Fingerprint, variant: int = 0) -> tuple[int, float]:
    """(bits, colour) between row 0 of `found` and row `variant` of `other`."""
    bits = int(hamming(found.hashes[:1], other.hashes[variant : variant + 1])[0, 0])
    return bits, float(colour_distance(found.colours[:1], other.colours[variant])[0])


def test_shapes_and_types() -> None:
    found = fingerprint(photo(1))
    assert found.hashes.shape == (NUM_VARIANTS, HASH_BYTES)
    assert found.colours.shape == (NUM_VARIANTS, COLOUR_BYTES)
    assert found.hashes.dtype == found.colours.dtype == np.uint8
    assert np.bitwise_count(found.hashes).sum(axis=1).min() > 120  # half of the bits, but for equal coefficients
    assert 0 < found.quality <= 100


@pytest.mark.parametrize("variant", range(NUM_VARIANTS))
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1_000), width=st.integers(64, 180), height=st.integers(64, 180))
def test_row_v_is_the_picture_under_variant_v(variant: int, seed: int, width: int, height: int) -> None:
    pixels = photo(seed, width, height)
    assert apart(fingerprint(dihedral(pixels, variant)), fingerprint(pixels), variant)[0] <= 1
    assert apart(fingerprint(dihedral(pixels, variant)), fingerprint(pixels), variant)[1] <= 1.8  # one step in each channel


@pytest.mark.parametrize("variant", range(NUM_VARIANTS))
@pytest.mark.parametrize("size", [(323, 400), (400, 267), (1001, 777)])
def test_reencoded_and_turned_copies_stay_near(variant: int, size: tuple[int, int]) -> None:
    """Sizes that no reduced decode divides evenly: the exact extent keeps a mirrored copy on the same cells."""
    pixels = photo(size[0], *size)
    copy = fingerprint_bytes(jpeg(dihedral(pixels, variant), 80), LIMITS)
    bits, colour = apart(copy, fingerprint_bytes(jpeg(pixels), LIMITS), variant)
    assert bits <= 6
    assert colour <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_does_not_move_the_hash(orientation: int) -> None:
    stored_as = {1: 0, 2: 1, 3: 3, 4: 2, 5: 4, 6: 6, 7: 7, 8: 5}[orientation]
    pixels = photo(5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    bits, colour = apart(
        fingerprint_bytes(jpeg(dihedral(pixels, stored_as), exif=exif), LIMITS), fingerprint_bytes(jpeg(pixels), LIMITS)
    )
    assert bits <= 6
    assert colour <= 2


def test_scale_of_the_decode_hardly_matters() -> None:
    data = jpeg(photo(8, 1200, 900))
    reduced = fingerprint_bytes(data, LIMITS)
    for at_least_px in (HASH_DECODE_PX, 128, 400, None):
        bits, colour = apart(fingerprint(decode_image(data, LIMITS, at_least_px=at_least_px)), reduced)
        assert bits <= 6
        assert colour <= 2


def test_png_and_jpeg_of_one_picture_agree() -> None:
    pixels = photo(9, 640, 480)
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, "PNG")
        png = fingerprint_bytes(buffer.getvalue(), LIMITS)
    assert apart(png, fingerprint_bytes(jpeg(pixels), LIMITS))[0] <= 4


def test_different_pictures_are_far() -> None:
    prints = [fingerprint(photo(seed, 96, 128)) for seed in range(40)]
    queries = np.stack([found.hashes for found in prints]).reshape(-1, HASH_BYTES)
    distances = hamming(queries, np.stack([found.hashes[0] for found in prints])).reshape(40, NUM_VARIANTS, 40)
    distances[np.arange(40), 0, np.arange(40)] = 256
    assert distances.min() > 60


def test_recoloured_picture_has_one_hash_and_another_colour() -> None:
    pixels = photo(12)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    recoloured = np.clip(pixels[..., ::-1] @ np.eye(3), 0, 255)
    recoloured += (grey - recoloured @ np.array([0.299, 0.587, 0.114]))[..., None]  # same luma
    bits, colour = apart(fingerprint(np.clip(recoloured, 0, 255).astype(np.uint8)), fingerprint(pixels))
    assert bits < 40
    assert colour > 10


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_pictures_have_no_quality(level: int) -> None:
    assert fingerprint(np.full((90, 80, 3), level, np.uint8)).quality == 0
    assert fingerprint_bytes(jpeg(np.full((90, 80, 3), level, np.uint8)), LIMITS).quality < 1


def test_symmetric_pictures_are_their_own_mirror() -> None:
    half = photo(20, 100, 160)
    found = fingerprint(np.concatenate([half, half[:, ::-1]], axis=1))
    assert np.array_equal(found.hashes[0], found.hashes[1])
    assert np.array_equal(found.colours[0], found.colours[1])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_hamming_counts_differing_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    some, others = rng.integers(0, 256, (5, 32), dtype=np.uint8), rng.integers(0, 256, (3, 32), dtype=np.uint8)
    distances = hamming(some, others)
    assert distances.dtype == np.int32
    bits = np.unpackbits(some, axis=1)[:, None] != np.unpackbits(others, axis=1)[None]
    assert np.array_equal(distances, bits.sum(axis=2))


def test_colour_distance_is_the_worst_cell() -> None:
    plain = np.full(COLOUR_BYTES, 100, np.uint8)
    other = plain.copy()
    other[3:6] = (103, 104, 100)
    assert colour_distance(np.stack([plain, other]), plain).tolist() == [0.0, 5.0]
    assert colour_distance(np.stack([plain, other]), np.stack([other, other])).tolist() == [5.0, 0.0]
    assert len(colour_distance(np.empty((0, COLOUR_BYTES), np.uint8), plain)) == 0
