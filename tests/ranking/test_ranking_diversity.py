"""The same thing is shown once: variants, near-duplicate pictures, products of one seller."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve.ranking.candidates import Shopper
from serve.ranking.diversity import nth_of_its_kind
from serve.ranking.rerank import rerank
from serve.ranking.spec import Diversity, RankingConfig
from tests.ranking.shelf import NOW, shelf

ROWS = [
    {"visual": 0.9, "group_id": "g1", "seller": "s1"},
    {"visual": 0.8, "group_id": "g1", "seller": "s1"},
    {"visual": 0.7, "group_id": None, "seller": "s1"},
    {"visual": 0.6, "group_id": None, "seller": None},
    {"visual": 0.5, "group_id": "g2", "seller": None},
]


def shown(**rules: object) -> list[int]:
    return rerank(shelf(*ROWS), Shopper(now=NOW), RankingConfig(diversity=Diversity.model_validate(rules)), 10).order_M.tolist()


def test_variants_are_shown_once() -> None:
    assert shown(variants="once") == [0, 2, 3, 4]


def test_a_seller_is_capped_and_no_seller_is_no_seller() -> None:
    assert shown(per_seller=1) == [0, 3, 4]
    assert shown(per_seller=2, variants="once") == [0, 2, 3, 4]


def test_the_cap_is_over_the_whole_list_not_over_one_page() -> None:
    many = [{"visual": 0.9 - i / 1000, "seller": "big"} for i in range(400)] + [{"visual": 0.3, "seller": "small"}]
    ranking = rerank(shelf(*many), Shopper(now=NOW), RankingConfig(diversity=Diversity(per_seller=2)), 3)
    assert ranking.order_M.tolist() == [0, 1, 400]


def test_the_same_picture_is_shown_once_but_not_its_other_colour() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 256, (5, 32), dtype=np.uint8)
    colours = random.integers(0, 256, (5, 48), dtype=np.uint8)
    hashes[1], colours[1] = hashes[0], colours[0]
    hashes[1, 0] ^= 0b111  # three bits: another file of the picture
    hashes[2] = hashes[0]  # same shape, another colour
    candidates = replace(shelf(*ROWS), hashes_N32=hashes, colours_N48=colours)
    rules = RankingConfig(diversity=Diversity(near_duplicates="once"))
    assert rerank(candidates, Shopper(now=NOW), rules, 10).order_M.tolist() == [0, 2, 3, 4]
    assert rerank(candidates, Shopper(now=NOW), rules, 2).order_M.tolist() == [0, 2]


@given(codes=st.lists(st.integers(-1, 4)))
def test_nth_of_its_kind_counts_earlier_ones(codes: list[int]) -> None:
    expected = [0 if code < 0 else codes[:i].count(code) for i, code in enumerate(codes)]
    assert nth_of_its_kind(np.array(codes, np.int64)).tolist() == expected
