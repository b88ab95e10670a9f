"""Near pairs among 256-bit hashes, compiled: what one task of near_duplicates does with the hashes that it was given.

A hash is cut into bands. Where the flips that are allowed in each band, plus one, add up to the radius plus one, two hashes
within the radius differ by no more than those flips in at least one band: else they differ by more in all of them (the general
pigeonhole principle; Qin, Wang, Xiao et al., "GPH: Similarity Search in Hamming Space", ICDE 2018). So hashes are sorted by a
band, and each is compared with those whose band is its own but for some flips, one mask of flips after another: neighbours in
memory with neighbours. Every m-th bit makes a band, as neighbouring bits of a perceptual hash go together.

Letters: N hashes of a task.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

HASH_BITS = 256
# In comparisons of two hashes that lie together, 0.7 ns each on an AMD EPYC: a look at where a bucket starts, 5.5 ns; a
# hash's way to one more task.
PROBE_COST, BAND_COST = 8, 1500
MAX_WIDTH = 30

Function = TypeVar("Function", bound=Callable[..., Any])
# Rows of two hashes, int32, and the bits by which they differ, uint8.
Links = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Band:
    """Places of its bits, 0 = the first of a hash, and the flips that are allowed in it."""

    bits: tuple[int, ...]
    flips: int


@cache
def flips_of(num_bits: int, most: int) -> np.ndarray:
    """int64 numbers of `num_bits` bits of which at most `most` are set, fewest first."""
    chosen = (bits for size in range(most + 1) for bits in combinations(range(num_bits), size))
    return np.array([sum(1 << bit for bit in bits) for bits in chosen], np.int64)


def bands_for(num_hashes: int, radius: int) -> list[Band]:
    """The bands that cost least for so many random hashes. A band without bits: all are compared with all."""
    best, least = [Band((), radius)], _cost(0, radius, num_hashes)
    for num in range(1, radius + 2):
        low, more = divmod(radius + 1, num)
        for width in range(1, min(HASH_BITS // num, MAX_WIDTH) + 1):
            cost = more * _cost(width, low, num_hashes) + (num - more) * _cost(width, low - 1, num_hashes)
            if cost < least:
                best, least = [Band(tuple(range(i, HASH_BITS, num)[:width]), low - 1 + (i < more)) for i in range(num)], cost
    return best


def _cost(width: int, most_flips: int, num_hashes: int) -> float:
    """Of one band, in comparisons a hash: its task, the buckets looked into, hashes found there, and the table of buckets."""
    probes = sum(comb(width, flips) for flips in range(most_flips + 1))
    return BAND_COST + probes * (PROBE_COST + num_hashes / (1 << width)) + (1 << width) / max(num_hashes, 1)


def links(words_N4: np.ndarray, band: Band, radius: int, prefix: int = 0, prefix_bits: int = 0) -> Links:
    """What hangs together in one band: a nearest neighbour of every hash that has one, and pairs that join the rest.

    `words_N4`: uint64, distinct hashes, first bit highest. With `prefix_bits`, pairs of which one hash's band starts with
    `prefix` and the other's with the same or a greater one; the others are another task's. Not all near pairs come out: a
    thousand pictures of one thing have half a million. Their groups and nearest distances do.
    """
    width, rest_bits = len(band.bits), len(band.bits) - prefix_bits
    keys_N = _keys(words_N4, np.array(band.bits, np.int64))
    prefixes, slots_N = np.unique(np.append(keys_N >> rest_bits, prefix), return_inverse=True)
    assert prefixes[0] == prefix, "a hash whose band starts with less belongs elsewhere"
    buckets_N = (slots_N[:-1] << rest_bits) + (keys_N & ((1 << rest_bits) - 1))
    starts, order_N = _sorted(buckets_N, len(prefixes) << rest_bits)
    slot_of = dict(zip(prefixes.tolist(), range(len(prefixes)), strict=True))
    masks = [
        ((slot << rest_bits), int(mask) & ((1 << rest_bits) - 1))
        for mask in flips_of(width, band.flips)
        if (slot := slot_of.get(prefix ^ (int(mask) >> rest_bits))) is not None
    ]
    num_own = int(starts[1 << rest_bits])
    lefts, rights, distances = _linked(
        words_N4[order_N], buckets_N[order_N], starts, np.array(masks, np.int64).reshape(-1, 2), num_own, radius
    )
    return order_N[lefts], order_N[rights], distances


def _compiled(function: Function) -> Function:
    """Compiled at its first call; kept beside this file, or in numba's cache folder."""
    compiled: Function = numba.njit(cache=True, nogil=True)(function)
    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def _set_bits(_typing: Any, word: Any) -> tuple[Any, Callable[..., Any]]:
    """How many bits of a uint64 are set: one instruction."""
    return types.uint64(types.uint64), lambda _context, builder, _signature, args: builder.ctpop(args[0])


@_compiled
def _keys(words_N4: np.ndarray, bits: np.ndarray) -> np.ndarray:
    keys_N = np.zeros(len(words_N4), np.int64)
    for row in range(len(words_N4)):
        key = np.uint64(0)
        for bit in bits:
            key = (key << np.uint64(1)) | ((words_N4[row, bit >> 6] >> np.uint64(63 - (bit & 63))) & np.uint64(1))
        keys_N[row] = key
    return keys_N


@_compiled
def _sorted(buckets_N: np.ndarray, num_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """First place of each bucket and of the end, and the rows by bucket, both int32: a counting sort."""
    starts = np.zeros(num_buckets + 2, np.int32)
    for bucket in buckets_N:
        starts[bucket + 2] += 1
    for bucket in range(2, num_buckets + 2):
        starts[bucket] += starts[bucket - 1]
    order_N = np.empty(len(buckets_N), np.int32)
    for row in range(len(buckets_N)):
        place = starts[buckets_N[row] + 1]
        order_N[place] = row
        starts[buckets_N[row] + 1] = place + 1
    return starts[:-1], order_N


@_compiled
def _root(parents: np.ndarray, row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


@_compiled
def _linked(
    words_N4: np.ndarray, buckets_N: np.ndarray, starts: np.ndarray, masks: np.ndarray, num_own: int, radius: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes are sorted by bucket, the task's own first. `masks`: (masks, 2) the other's first bucket, and the flips within."""
    num = len(words_N4)
    parents, nearest_N, distance_N = np.arange(num, dtype=np.int32), np.full(num, -1, np.int32), np.full(num, 255, np.uint8)
    joined, far = [(np.int32(0), np.int32(0), np.uint8(0)) for _ in range(0)], np.uint64(radius)
    for first_bucket, flips in masks:
        for row in range(num_own):
            bucket = first_bucket + (buckets_N[row] ^ flips)
            if bucket < buckets_N[row]:
                continue
            for other in range(max(starts[bucket], row + 1), starts[bucket + 1]):
                distance = _set_bits(words_N4[row, 0] ^ words_N4[other, 0]) + _set_bits(words_N4[row, 1] ^ words_N4[other, 1])
                if distance > far:  # nearly always
                    continue
                distance += _set_bits(words_N4[row, 2] ^ words_N4[other, 2]) + _set_bits(words_N4[row, 3] ^ words_N4[other, 3])
                if distance > far:
                    continue
                if distance < distance_N[row]:
                    nearest_N[row], distance_N[row] = other, distance
                if distance < distance_N[other]:
                    nearest_N[other], distance_N[other] = row, distance
                root, other_root = _root(parents, row), _root(parents, other)
                if root != other_root:
                    parents[other_root] = root
                    joined.append((np.int32(row), np.int32(other), np.uint8(distance)))
    for row in range(num):
        if nearest_N[row] >= 0:
            joined.append((np.int32(row), nearest_N[row], distance_N[row]))
    lefts, rights, distances = np.empty(len(joined), np.int32), np.empty(len(joined), np.int32), np.empty(len(joined), np.uint8)
    for place in range(len(joined)):
        lefts[place], rights[place], distances[place] = joined[place]
    return lefts, rights, distances
