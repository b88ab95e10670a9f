"""Results of a real release, gathered and put into order."""

import numpy as np
import pytest

from serve.index.release import Release
from serve.index.search import Result, fuse_crops
from serve.ranking.candidates import COLUMNS, Shopper
from serve.ranking.gather import Shelf
from serve.ranking.reranker import Reranker
from serve.ranking.spec import RankingConfig
from tests.index.parts import unit, write_release

IDS = [f"p{i:03d}" for i in range(40)]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("reranked")
    vectors = unit(np.random.default_rng(0).normal(size=(40, 8)) + 2.0)
    write_release(folder, {"bags": (IDS[:20], vectors[:20]), "shoes": (IDS[20:], vectors[20:])})
    return Release.open(folder)


@pytest.fixture(scope="module")
def results(release: Release) -> tuple[Result, ...]:
    return fuse_crops(release.search(np.ones((1, 8), np.float32), 40), 40)


def test_columns_are_the_products_own(release: Release, results: tuple[Result, ...]) -> None:
    table = Shelf(release.products).candidates(results, pictures=False).table
    for result, row in zip(results, table.to_pylist(), strict=True):
        known = release.product(result.product_id)
        assert known is not None and row == {name: known[name] for name in COLUMNS}


def test_a_product_that_is_in_no_shard_is_looked_up_by_its_id(release: Release, results: tuple[Result, ...]) -> None:
    without_place = tuple(r._replace(place=None) if i % 3 == 0 else r for i, r in enumerate(results))
    one, other = (Shelf(release.products).candidates(found, pictures=False) for found in (without_place, results))
    assert one.table.to_pylist() == other.table.to_pylist()


def test_without_rules_the_order_is_by_looks(release: Release, results: tuple[Result, ...]) -> None:
    reranker, shelf = Reranker(RankingConfig()), Shelf(release.products)
    assert reranker.order(results, shelf, Shopper(), 7) == results[:7] and reranker.depth(Shopper(), 7) == 7


def test_the_whole_list_is_ranked_before_it_is_cut(release: Release, results: tuple[Result, ...]) -> None:
    last = results[-1].product_id
    brand = (release.product(last) or {})["brand"]
    config = RankingConfig.model_validate({"max_gap": 2, "boosts": [{"name": "b", "brand": brand, "weight": 1}]})
    reranker = Reranker(config)
    assert reranker.depth(Shopper(), 3) == 100
    first = reranker.order(results, Shelf(release.products), Shopper(), 40)
    boosted = [r for r in first if r.parts]
    assert last in {r.product_id for r in boosted} and first[: len(boosted)] == tuple(boosted)
    assert boosted[0].parts == (("boost:b", 1.0),)


def test_pictures_are_those_of_the_first_photos(release: Release, results: tuple[Result, ...]) -> None:
    candidates = Shelf(release.products).candidates(results, pictures=True)
    assert candidates.hashes_N32 is not None
    for result, hash_32 in zip(results, candidates.hashes_N32, strict=True):
        shard, product = release.products._find(result.product_id) or (None, 0)
        assert shard is not None and (shard.hashes_M32[shard.records.first_image(product)] == hash_32).all()
