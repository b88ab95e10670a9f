"""The hash look-up finds every planted pair, at every distance, under every variant, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.index import hash_table
from serve.index.hash_table import BUCKETS, NUM_TABLES, HashTable, write_tables
from serve.vision.hash import hamming


def flipped(hash_32: np.ndarray, bits: int, random: np.random.Generator) -> np.ndarray:
    """`hash_32` with exactly `bits` other bits."""
    unpacked = np.unpackbits(hash_32)
    unpacked[random.choice(256, bits, replace=False)] ^= 1
    return np.packbits(unpacked)


@pytest.mark.parametrize("distance", range(32))
def test_planted_pairs(distance: int) -> None:
    random = np.random.default_rng(distance)
    stored = random.integers(0, 256, (3000, 32), dtype=np.uint8)
    for variant in range(8):
        row = int(random.integers(3000))
        query = random.integers(0, 256, (8, 32), dtype=np.uint8)
        query[variant] = flipped(stored[row], distance, random)
        rows, variants, distances = HashTable(stored).lookup(query, distance)
        assert (rows.tolist(), variants.tolist(), distances.tolist()) == ([row], [variant], [distance])
        assert not len(HashTable(stored).lookup(query, distance - 1)[0])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(-1, 256), st.integers(0, 2**32 - 1))
def test_equals_comparing_all(num: int, radius: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    stored, query = random.integers(0, 256, (num, 32), dtype=np.uint8), random.integers(0, 256, (8, 32), dtype=np.uint8)
    rows, variants, distances = HashTable(stored).lookup(query, radius)
    plain = hamming(stored, query)
    assert set(zip(rows.tolist(), variants.tolist(), strict=True)) == set(map(tuple, np.argwhere(plain <= radius).tolist()))
    assert distances.tolist() == plain[rows, variants].tolist() == sorted(distances.tolist())


@pytest.fixture(scope="module")
def tabled(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, HashTable]:
    """60,000 hashes with bucket tables: some alone, some in dense groups, as photos of one style are."""
    random = np.random.default_rng(5)
    stored = random.integers(0, 256, (60_000, 32), dtype=np.uint8)
    for row in range(0, 20_000, 2):
        stored[row + 1] = flipped(stored[row], int(random.integers(60)), random)
    stored[:, 0] |= 128  # the mean's bit
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder, stored)
    table = HashTable.open(folder, stored)
    assert table.places is not None
    return stored, table


def test_planted_pairs_are_found_by_their_buckets(tabled: tuple[np.ndarray, HashTable]) -> None:
    """At every distance 0 to 31, under every variant, 20 pairs each: all of them, as by comparing with all."""
    stored, table = tabled
    random = np.random.default_rng(6)
    for distance in range(32):
        for _ in range(20):
            row, variant = int(random.integers(20_000, 60_000)), int(random.integers(8))
            query = random.integers(0, 256, (8, 32), dtype=np.uint8)
            query[variant] = flipped(stored[row], distance, random)
            found = table.lookup(query, 31)
            assert (row, variant, distance) in list(zip(*(part.tolist() for part in found), strict=True))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 59), st.integers(1, 8))
def test_buckets_equal_comparing_all(tabled: tuple[np.ndarray, HashTable], seed: int, radius: int, variants: int) -> None:
    stored, table = tabled
    random = np.random.default_rng(seed)
    query = np.stack([flipped(stored[row], int(random.integers(40)), random) for row in random.integers(60_000, size=variants)])
    found, all_found = table.lookup(query, radius), HashTable(stored).lookup(query, radius)
    assert len(all_found[0]) or radius < 40
    for ours, plain in zip(found, all_found, strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_bytes_of_a_hash() -> None:
    """At a million hashes, the hash itself included."""
    assert 32 + 4 * NUM_TABLES + 4 * NUM_TABLES * (BUCKETS + 1) / 1e6 <= 100


def test_few_hashes_have_no_tables(tmp_path: Path) -> None:
    write_tables(tmp_path, np.zeros((10, 32), np.uint8))
    assert not list(tmp_path.iterdir()) and HashTable.open(tmp_path, np.zeros((10, 32), np.uint8)).places is None


def test_several_chunks_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_table, "CHUNK_ROWS", 100)
    stored = np.random.default_rng(1).integers(0, 256, (1050, 32), dtype=np.uint8)
    stored.tofile(tmp_path / "hashes.u8")
    table = HashTable(np.memmap(tmp_path / "hashes.u8", np.uint8, "r", shape=(1050, 32)))
    for row in (0, 99, 100, 1049):
        assert table.lookup(np.repeat(stored[row : row + 1], 8, axis=0), 0)[0].tolist() == [row] * 8


def test_inverse_is_far() -> None:
    zeros = np.zeros((1, 32), np.uint8)
    assert HashTable(zeros).lookup(np.full((8, 32), 255, np.uint8), 255)[0].size == 0
    assert HashTable(zeros).lookup(np.full((8, 32), 255, np.uint8), 256)[2].tolist() == [256] * 8
