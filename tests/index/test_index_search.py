"""Fusion over crops, routing, and the answer of the hash stage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.index.hash_stage import HashMatch
from serve.index.manifest import Manifest
from serve.index.release import Candidate, Filters
from serve.index.search import EXACT_SCORE, fuse_crops, hash_answer, nearness, route, search_crops
from tests.index.parts import unit, write_release


def candidate(product_id: str, score: float, crop: int = 0) -> Candidate:
    """A candidate with a product and a score."""
    return Candidate(product_id, score, "0" * 64, crop, (0, 0, 1, 1), None, "file:///x", "shards/s")


FOUND = st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-10, 10)), max_size=6), max_size=4)


@given(FOUND, st.integers(1, 8))
def test_fuse_crops(found: list[list[tuple[str, int]]], k: int) -> None:
    results = fuse_crops([[candidate(product, score / 10) for product, score in crop] for crop in found], k)
    best: dict[str, float] = {}
    for product, score in (pair for crop in found for pair in crop):
        best[product] = max(best.get(product, -2), score / 10)
    assert [(r.product_id, r.score) for r in results] == sorted(best.items(), key=lambda item: (-item[1], item[0]))[:k]
    assert all((r.product_id, r.score) in [(p, s / 10) for p, s in found[r.query_crop]] for r in results)


def test_nearness_asks_all_crops() -> None:
    near, far, nothing = [candidate("a", 0.9), candidate("b", 0.8)], [candidate("c", 0.5)], list[Candidate]()
    assert nearness([near]) == pytest.approx(0.9)
    assert nearness([far, near]) == pytest.approx((0.9 + 0.7) / 2)
    assert nearness([nothing, near]) == pytest.approx(0.9)
    assert nearness([nothing]) == nearness([]) == -1


def test_hash_answer() -> None:
    match = HashMatch(("a", "b"), "0" * 64, "file:///x", "bags", 3, 0.1, 0, np.zeros(4, np.float32))
    results = hash_answer(match, [candidate("c", 1.0), candidate("b", 0.99), candidate("d", 0.5)], 4)
    assert [(r.product_id, r.match) for r in results] == [("a", "exact"), ("b", "exact"), ("c", "similar"), ("d", "similar")]
    assert results[0].score == results[2].score == EXACT_SCORE and results[3].score == 0.5
    assert len(hash_answer(match, [], 1)) == 1


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three partitions; `rest` holds what is small and what has no category."""
    vectors = unit(np.eye(4))
    parts = {name: ([f"{name}{i}" for i in range(4)], vectors) for name in ("bags", "shoes", "rest")}
    written = write_release(tmp_path_factory.mktemp("r") / "r", parts)
    rest = written.partitions[2].model_copy(update={"categories": ("", "hats")})
    return written.model_copy(update={"partitions": (*written.partitions[:2], rest)})


def test_route(manifest: Manifest) -> None:
    assert route(manifest, None) is None and route(manifest, {}) is None
    assert route(manifest, {"bags/totes": 0.95, "shoes": 0.05}) == ["bags"]
    assert route(manifest, {"bags/totes": 0.5, "bags/clutches": 0.1, "shoes/boots": 0.35, "hats": 0.05}) == ["bags", "shoes"]
    assert route(manifest, {"hats/caps": 1.0}) == ["rest"]
    assert route(manifest, {"bags": 0.6, "cars": 0.4}) is None  # a partition that cars are in is not known
    single = manifest.model_copy(update={"partitions": manifest.partitions[:1]})
    assert route(single, {"bags": 1.0}) is None


class Recorder:
    """A searcher that answers with what it was asked."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def search(self, embeddings_QD: np.ndarray, k: int, partitions: object = None, filters: Filters | None = None) -> list:
        self.calls.append(partitions)
        return [[candidate(f"{row[0]:.0f}", 1.0)] for row in embeddings_QD]


def test_crops_of_one_route_are_searched_together() -> None:
    recorder = Recorder()
    embeddings = np.arange(5, dtype=np.float32)[:, None]
    found = search_crops(recorder, embeddings, 3, [None, ["a", "b"], None, ["b", "a"], ["c"]])
    assert [candidates[0].product_id for candidates in found] == ["0", "1", "2", "3", "4"]
    assert recorder.calls == [None, frozenset("ab"), frozenset("c")]
