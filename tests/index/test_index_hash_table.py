"""The hash look-up finds every planted pair, at every distance, under every variant, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.index import hash_table
from serve.index.hash_table import HashTable
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
