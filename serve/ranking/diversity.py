"""What one answer shows of the same thing: near-duplicates and variants once, few of one seller.

Letters: N candidates, M of them in order, best first.
"""

import numpy as np

from serve.ranking.candidates import Candidates
from serve.ranking.spec import Diversity
from serve.vision.hash import colour_distance, hamming

# The same picture, whatever its file: a decode at another scale moves the hash by 0.8 bits on average, at most 6 (measured on
# apparel photos); a colour difference of 2.3 is just visible, so other colours of a style stay.
SAME_BITS = 8
SAME_COLOUR = 2.3


def diversify(candidates: Candidates, order_M: np.ndarray, rules: Diversity, k: int) -> np.ndarray:
    """`order_M` (places, best first) without what the rules leave out: the first `k` that stay."""
    if rules.variants == "once":
        order_M = order_M[nth_of_its_kind(candidates.codes("group_id")[order_M]) < 1]
    if rules.per_seller:
        order_M = order_M[nth_of_its_kind(candidates.codes("seller")[order_M]) < rules.per_seller]
    if rules.near_duplicates == "once" and candidates.hashes_N32 is not None and candidates.colours_N48 is not None:
        order_M = distinct_pictures(candidates.hashes_N32[order_M], candidates.colours_N48[order_M], order_M, k)
    return order_M[:k]


def nth_of_its_kind(codes_M: np.ndarray) -> np.ndarray:
    """(M,) how many earlier ones have the same code; 0 for code -1, which is no kind."""
    order = np.argsort(codes_M, kind="stable")
    ordered = codes_M[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, int)
    nth = np.empty(len(codes_M), np.int64)
    nth[order] = np.arange(len(codes_M)) - np.repeat(starts, np.diff(np.r_[starts, len(codes_M)]))
    return np.where(codes_M < 0, 0, nth)


def distinct_pictures(hashes_M32: np.ndarray, colours_M48: np.ndarray, order_M: np.ndarray, k: int) -> np.ndarray:
    """The first k of `order_M` whose picture is not that of an earlier one that stays."""
    width = 2 * k  # most answers are full after the first few
    while True:
        near_WW = hamming(hashes_M32[:width], hashes_M32[:width]) <= SAME_BITS
        left_W = np.ones(len(near_WW), bool)
        kept: list[int] = []
        for place in range(len(left_W)):
            if not left_W[place]:
                continue
            kept.append(place)
            (near,) = np.nonzero(near_WW[place])
            if len(near) > 1:  # it is near itself
                left_W[near[colour_distance(colours_M48[near], colours_M48[place]) <= SAME_COLOUR]] = False
            if len(kept) == k:
                return order_M[kept]
        if width >= len(order_M):
            return order_M[kept]
        width *= 4
