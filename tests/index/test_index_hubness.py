"""Hubness as it is defined, whatever the chunks; and products that training has seen give way to new ones."""

from pathlib import Path

import numpy as np
import pytest

from serve.index.hubness import HUBNESS_FILE, NEAREST, hubness
from serve.index.manifest import PartitionSpec, ReleaseError
from serve.index.plan import FLAT
from serve.index.release import Release
from serve.index.search import fuse_crops
from serve.index.shard import Shard
from serve.ranking.candidates import Shopper
from serve.ranking.gather import Shelf
from serve.ranking.reranker import Reranker
from serve.ranking.spec import RankingConfig
from tests.index.parts import unit, write_release


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 10_000])
def test_mean_of_the_nearest_queries_with_the_best_row(chunk_rows: int) -> None:
    rng = np.random.default_rng(3)
    vectors_ND, queries_BD = unit(rng.normal(size=(120, 16))).astype(np.float16), unit(rng.normal(size=(40, 16)))
    product_N = np.sort(np.append(np.arange(25), rng.integers(0, 25, 95))).astype(np.int32)
    found = hubness(vectors_ND, product_N, queries_BD, chunk_rows)
    for product in range(25):
        best_B = (vectors_ND[product_N == product].astype(np.float32) @ queries_BD.T).max(axis=0)
        assert found[product] == pytest.approx(np.sort(best_B)[-NEAREST:].mean(), abs=1e-6)
    assert found.dtype == np.float32 and len(found) == 25


def test_few_queries_and_no_rows() -> None:
    one = hubness(np.eye(3, dtype=np.float16), np.arange(3, dtype=np.int32), np.eye(3, dtype=np.float32)[:2])
    np.testing.assert_allclose(one, [0.5, 0.5, 0.0])
    assert hubness(np.empty((0, 3), np.float16), np.empty(0, np.int32), np.eye(3, dtype=np.float32)).shape == (0,)


def test_a_new_product_comes_before_one_that_training_drew_to_the_users_photos(tmp_path: Path) -> None:
    """The photo lies a little nearer to the known product, as all photos do; other queries and settings leave the order."""
    vectors = unit(np.array([[1.0, 0.35, 0, 0], [0.8, 0, 0.8, 0], [0, 0, 0, 1.0]])).astype(np.float16)  # seen, new, far
    photo = unit(np.array([[1.0, 0.2, 0.42, 0]])).astype(np.float32)
    queries = unit(np.random.default_rng(0).normal(size=(50, 4)) * 0.1 + [1.0, 0.3, 0, 0]).astype(np.float32)
    write_release(tmp_path / "with", {"goods": (["p1", "p2", "p3"], vectors)}, queries_BD=queries)
    release = Release.open(tmp_path / "with")
    shelf, results = Shelf(release.products), fuse_crops(release.search(photo, 3), 3)
    assert shelf.knows_hubness and [result.product_id for result in results] == ["p1", "p2", "p3"]
    reranker = Reranker(RankingConfig())
    ranked = reranker.order(results, shelf, Shopper(photographs=True), 3)
    assert [result.product_id for result in ranked] == ["p2", "p1", "p3"]
    assert [result.score for result in ranked] != sorted((result.score for result in ranked), reverse=True), "scores are cosines"
    assert [[name for name, _ in result.parts] for result in ranked][1] == ["hubness"]
    assert reranker.order(results, shelf, Shopper(), 3) == results and reranker.depth(Shopper(), 3) == 3
    assert Reranker(RankingConfig().without_hubness()).order(results, shelf, Shopper(photographs=True), 3) == results


def test_a_release_without_queries_knows_none(tmp_path: Path) -> None:
    write_release(tmp_path, {"goods": (["p1", "p2"], np.eye(2, 4, dtype=np.float16))})
    assert not Shelf(Release.open(tmp_path).products).knows_hubness


def test_a_file_of_other_products_is_refused(tmp_path: Path) -> None:
    write_release(tmp_path, {"goods": (["p1", "p2"], np.eye(2, 4, dtype=np.float16))}, 1, queries_BD=np.eye(4, dtype=np.float32))
    path = next(tmp_path.rglob(HUBNESS_FILE))
    np.zeros(3, np.float32).tofile(path)
    with pytest.raises(ReleaseError, match=r"hubness\.f32: of 3 products, not 2; build it again"):
        Shard.open(path.parent, PartitionSpec(factory=FLAT, nprobe=1, refine_factor=10, metric="cosine"), 4)
