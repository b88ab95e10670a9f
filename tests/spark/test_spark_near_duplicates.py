"""Planted pairs at every distance are found, none beyond the radius is, and groups are the connected components."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from jobs.spark.near_duplicates import components, groups, hashed, near_pairs

RADIUS = 31
SLOW = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def image_id(index: int) -> str:
    return f"{index:064x}"


def hashed_images(spark: SparkSession, hashes: list[int]) -> DataFrame:
    """256-bit integers as rows of `features`, through `hashed`."""
    rows = [(image_id(i), "b", 0, 90.0, bytearray(value.to_bytes(32, "big"))) for i, value in enumerate(hashes)]
    features = spark.createDataFrame(rows, "image_id STRING, bundle_digest STRING, crop INT, hash_quality FLOAT, hash BINARY")
    return hashed(features, "b", 50.0)


def found_pairs(spark: SparkSession, hashes: list[int], heavy: int) -> dict[tuple[int, int], int]:
    """What near_pairs finds, as (index, index): distance; the hashes are distinct."""
    words = {tuple(_words(value)): i for i, value in enumerate(hashes)}
    pairs = near_pairs(hashed_images(spark, hashes).select("words"), RADIUS, heavy).collect()
    assert len(pairs) == len({(tuple(row["a"]), tuple(row["b"])) for row in pairs})
    indexed = ((sorted((words[tuple(row["a"])], words[tuple(row["b"])])), row["distance"]) for row in pairs)
    return {(first, second): distance for (first, second), distance in indexed}


def true_pairs(hashes: list[int]) -> dict[tuple[int, int], int]:
    """Every pair compared."""
    distances = {(i, j): (hashes[i] ^ hashes[j]).bit_count() for j in range(len(hashes)) for i in range(j)}
    return {pair: distance for pair, distance in distances.items() if distance <= RADIUS}


def _words(value: int) -> list[int]:
    return [int(word) for word in np.frombuffer(value.to_bytes(32, "big"), ">i8")]


def flipped(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


@pytest.mark.slow
@SLOW
@given(seed=st.integers(0, 2**32), heavy=st.sampled_from([0, 3, 10_000]))
def test_pairs_at_every_distance_are_found_and_none_beyond(spark: SparkSession, seed: int, heavy: int) -> None:
    rng = random.Random(seed)
    hashes: list[int] = []
    for distance in range(1, RADIUS + 6):
        base = rng.getrandbits(256)
        hashes += [base, flipped(base, rng.sample(range(256), distance))]
    found = found_pairs(spark, hashes, heavy)
    assert found == true_pairs(hashes)
    assert set(found.values()) >= set(range(1, RADIUS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("heavy", [0, 5, 10_000])
def test_hardest_pairs_and_crowded_bands(spark: SparkSession, heavy: int) -> None:
    """31 flips spread as evenly as they can be, one band whole or with one flip, in hashes that share most of their bands."""
    rng = random.Random(3)
    even = [16 * band + rng.randrange(16) for band in range(16)]
    second = [16 * band + (bit % 16 + 5) % 16 for band, bit in enumerate(even)]
    spread = [flipped(0, even + second[:15]), flipped(0, second + even[1:]), flipped(0, even + second)]
    sparse = [flipped(0, rng.sample(range(64), rng.randrange(2, 14))) for _ in range(60)]
    hashes = list(dict.fromkeys([0, *spread, *sparse]))
    found = found_pairs(spark, hashes, heavy)
    assert found == true_pairs(hashes)
    assert found[0, 1] == found[0, 2] == 31 and (0, 3) not in found


def test_small_radius_finds_the_same_as_comparing_all(spark: SparkSession) -> None:
    rng = random.Random(4)
    base = rng.getrandbits(256)
    hashes = [base, *(flipped(base, rng.sample(range(256), distance)) for distance in (1, 7, 8, 9, 15))]
    pairs = near_pairs(hashed_images(spark, hashes).select("words"), 8).collect()
    assert len(pairs) == sum(distance <= 8 for distance in true_pairs(hashes).values())


def test_groups_are_connected_components(spark: SparkSession) -> None:
    """A chain whose ends are far apart is one group; equal hashes are at distance 0; flat pictures and loners stay out."""
    rng = random.Random(5)
    chain = [rng.getrandbits(256)]
    for _ in range(12):
        chain.append(flipped(chain[-1], rng.sample(range(256), 20)))
    twin, loner = rng.getrandbits(256), rng.getrandbits(256)
    images = hashed_images(spark, [*chain, twin, twin, loner]).persist()
    pairs = near_pairs(images.select("words").distinct(), RADIUS).persist()
    found = {row["image_id"]: row for row in groups(images, pairs, components(pairs)).collect()}
    assert sorted(found) == [image_id(i) for i in range(15)]
    assert {(row["group_id"], row["group_size"]) for i, row in found.items() if i < image_id(13)} == {(image_id(0), 13)}
    assert {found[image_id(i)]["nearest_distance"] for i in (13, 14)} == {0}
    assert found[image_id(14)]["group_id"] == image_id(13)
    assert found[image_id(0)]["nearest_distance"] == 20


def test_only_whole_pictures_of_the_bundle_with_a_telling_hash(spark: SparkSession) -> None:
    value = bytearray(32)
    rows = [("a", "b", 0, 90.0, value), ("a", "b", 1, None, None), ("c", "old", 0, 90.0, value), ("d", "b", 0, 49.0, value)]
    features = spark.createDataFrame(rows, "image_id STRING, bundle_digest STRING, crop INT, hash_quality FLOAT, hash BINARY")
    assert [tuple(row) for row in hashed(features, "b", 50.0).collect()] == [("a", [0, 0, 0, 0])]
