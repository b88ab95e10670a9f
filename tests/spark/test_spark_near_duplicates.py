"""Planted pairs at every distance are found, none beyond the radius is, and groups are the connected components."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jobs.spark.near_duplicates import groups, hashed, near_pairs

RADIUS = 31
Pairs = dict[tuple[int, int], int]
SLOW = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def image_id(index: int) -> str:
    return f"{index:064x}"


def hashed_images(spark: SparkSession, hashes: list[int]) -> DataFrame:
    """256-bit integers as rows of `features`, through `hashed`."""
    rows = [(image_id(i), "b", 0, 90.0, bytearray(value.to_bytes(32, "big"))) for i, value in enumerate(hashes)]
    features = spark.createDataFrame(rows, "image_id STRING, bundle_digest STRING, crop INT, hash_quality FLOAT, hash BINARY")
    return hashed(features, "b", 50.0)


def found_pairs(spark: SparkSession, hashes: list[int], num_hashes: int, rows_a_task: int, radius: int = RADIUS) -> Pairs:
    """What near_pairs finds, as (index, index): distance; the hashes are distinct."""
    words = {tuple(_words(value)): i for i, value in enumerate(hashes)}
    pairs = near_pairs(hashed_images(spark, hashes).select("words"), num_hashes, radius, rows_a_task).collect()
    assert len(pairs) == len({(tuple(row["a"]), tuple(row["b"])) for row in pairs})
    assert all(row["a"] < row["b"] for row in pairs)
    indexed = ((sorted((words[tuple(row["a"])], words[tuple(row["b"])])), row["distance"]) for row in pairs)
    return {(first, second): distance for (first, second), distance in indexed}


def true_pairs(hashes: list[int]) -> Pairs:
    """Every pair compared."""
    distances = {(i, j): (hashes[i] ^ hashes[j]).bit_count() for j in range(len(hashes)) for i in range(j)}
    return {pair: distance for pair, distance in distances.items() if distance <= RADIUS}


def _words(value: int) -> list[int]:
    return [int(word) for word in np.frombuffer(value.to_bytes(32, "big"), ">i8")]


def nearest(pairs: Pairs) -> dict[int, int]:
    """Each index: the distance of its nearest neighbour."""
    found: dict[int, int] = {}
    for pair, distance in pairs.items():
        for index in pair:
            found[index] = min(distance, found.get(index, distance))
    return found


def joined(pairs: Pairs, num: int) -> list[int]:
    """The smallest index that each one hangs together with."""
    graph = coo_array((np.ones(len(pairs)), tuple(np.array(list(pairs)).T)), shape=(num, num))
    labels = connected_components(graph, directed=False)[1]
    return [int(np.flatnonzero(labels == label)[0]) for label in labels]


def flipped(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


# As many as a real run has, though few are there: one task; a task for each band; and for four and sixteen parts of each.
DEALT = [(100, 16_000_000), (10_000_000, 16_000_000), (10_000_000, 3_000_000), (10_000_000, 700_000)]


@pytest.mark.slow
@SLOW
@given(seed=st.integers(0, 2**32), dealt=st.sampled_from(DEALT))
def test_pairs_at_every_distance_are_found_and_none_beyond(spark: SparkSession, seed: int, dealt: tuple[int, int]) -> None:
    rng = random.Random(seed)
    hashes: list[int] = []
    for distance in range(1, RADIUS + 6):
        base = rng.getrandbits(256)
        hashes += [base, flipped(base, rng.sample(range(256), distance))]
    found = found_pairs(spark, hashes, *dealt)
    assert found == true_pairs(hashes)  # each hash has one neighbour
    assert set(found.values()) >= set(range(1, RADIUS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("dealt", DEALT)
def test_hashes_that_share_most_of_their_bands(spark: SparkSession, dealt: tuple[int, int]) -> None:
    rng = random.Random(3)
    hashes = [0, *{flipped(0, rng.sample(range(64), rng.randrange(2, 14))) for _ in range(60)}]
    found, truth = found_pairs(spark, hashes, *dealt), true_pairs(hashes)
    assert found.items() <= truth.items()
    assert len(found) < len(truth) / 4, "not all pairs of a crowd"
    assert nearest(found) == nearest(truth)
    assert joined(found, len(hashes)) == joined(truth, len(hashes))


ALONE = pytest.mark.parametrize("images_alone", [100, 0], ids=["one task", "dealt"])


@ALONE
def test_groups_are_connected_components(spark: SparkSession, images_alone: int) -> None:
    """A chain whose ends are far apart is one group; equal hashes are at distance 0; flat pictures and loners stay out."""
    rng = random.Random(5)
    chain = [rng.getrandbits(256)]
    for _ in range(12):
        chain.append(flipped(chain[-1], rng.sample(range(256), 20)))
    twin, loner = rng.getrandbits(256), rng.getrandbits(256)
    images = hashed_images(spark, [*chain, twin, twin, loner]).persist()
    found = {row["image_id"]: row for row in groups(images, 16, RADIUS, images_alone).collect()}
    assert sorted(found) == [image_id(i) for i in range(15)]
    assert {(row["group_id"], row["group_size"]) for i, row in found.items() if i < image_id(13)} == {(image_id(0), 13)}
    assert {found[image_id(i)]["nearest_distance"] for i in (13, 14)} == {0}
    assert found[image_id(14)]["group_id"] == image_id(13)
    assert found[image_id(0)]["nearest_distance"] == 20


@ALONE
def test_equal_hashes_are_a_group_where_no_pair_is_near(spark: SparkSession, images_alone: int) -> None:
    rng = random.Random(6)
    twin = rng.getrandbits(256)
    images = hashed_images(spark, [twin, twin, rng.getrandbits(256)])
    found = groups(images, 3, RADIUS, images_alone).collect()
    assert [(row["image_id"], row["group_size"]) for row in sorted(found)] == [(image_id(0), 2), (image_id(1), 2)]


@ALONE
def test_no_image_no_group(spark: SparkSession, images_alone: int) -> None:
    assert groups(hashed_images(spark, [1]).limit(0), 0, RADIUS, images_alone).collect() == []


@pytest.mark.slow
def test_one_task_groups_as_many_do(spark: SparkSession) -> None:
    """Crowds, chains, twins and loners."""
    rng = random.Random(8)
    hashes = [rng.getrandbits(256) for _ in range(40)]
    for _ in range(160):
        hashes.append(flipped(rng.choice(hashes), rng.sample(range(256), rng.randrange(0, 45))))
    images = hashed_images(spark, hashes).persist()
    alone, dealt = (sorted(groups(images, len(hashes), RADIUS, limit).collect()) for limit in (1000, 0))
    assert alone == dealt and len({row["group_id"] for row in alone}) > 10


def test_only_whole_pictures_of_the_bundle_with_a_telling_hash(spark: SparkSession) -> None:
    value = bytearray(32)
    rows = [("a", "b", 0, 90.0, value), ("a", "b", 1, None, None), ("c", "old", 0, 90.0, value), ("d", "b", 0, 49.0, value)]
    features = spark.createDataFrame(rows, "image_id STRING, bundle_digest STRING, crop INT, hash_quality FLOAT, hash BINARY")
    assert [tuple(row) for row in hashed(features, "b", 50.0).collect()] == [("a", [0, 0, 0, 0])]
