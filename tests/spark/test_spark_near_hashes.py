"""The compiled search for near pairs: pairs that are hardest to find, at every radius and for every number of bands."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.spark.near_hashes import HASH_BITS, bands_for, links


def linked(hashes: list[int], num_hashes: int, radius: int) -> dict[tuple[int, int], int]:
    """(index, index): distance, of all bands."""
    words_N4 = np.frombuffer(b"".join(value.to_bytes(32, "big") for value in hashes), ">u8").astype(np.uint64).reshape(-1, 4)
    found = {}
    for band in bands_for(num_hashes, radius):
        for left, right, distance in zip(*(part.tolist() for part in links(words_N4, band, radius)), strict=True):
            found[min(left, right), max(left, right)] = distance
    return found


def spread(num_flips: int, num_bands: int, rng: random.Random) -> int:
    """Flips dealt to the bands as evenly as they can be: the pair that is hardest to find."""
    chosen: list[int] = []
    for place in range(num_flips):
        chosen.append(rng.choice([bit for bit in range(place % num_bands, HASH_BITS, num_bands) if bit not in chosen]))
    return sum(1 << (HASH_BITS - 1 - bit) for bit in chosen)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), num_hashes=st.sampled_from([1, 10**4, 3 * 10**6]), radius=st.integers(0, 31))
def test_pairs_spread_over_all_bands_are_found_at_every_radius(seed: int, num_hashes: int, radius: int) -> None:
    rng = random.Random(seed)
    num_bands = len(bands_for(num_hashes, radius))
    hashes: list[int] = []
    for num_flips in range(1, radius + 4):
        hashes += [base := rng.getrandbits(256), base ^ spread(num_flips, num_bands, rng)]
    assert linked(hashes, num_hashes, radius) == {(2 * i, 2 * i + 1): i + 1 for i in range(radius)}


@pytest.mark.parametrize("radius", [0, 1, 8, 31])
@pytest.mark.parametrize("num_hashes", [1, 10**4, 10**7, 2 * 10**9])
def test_bands_do_not_share_bits_and_their_flips_cover_the_radius(radius: int, num_hashes: int) -> None:
    bands = bands_for(num_hashes, radius)
    bits = [bit for band in bands for bit in band.bits]
    assert len(bits) == len(set(bits)) and all(0 <= bit < HASH_BITS for bit in bits)
    assert sum(band.flips + 1 for band in bands) == radius + 1 and all(band.flips >= 0 for band in bands)


def test_no_hashes_and_one() -> None:
    assert linked([], 1, 31) == linked([7], 10**6, 31) == {}
