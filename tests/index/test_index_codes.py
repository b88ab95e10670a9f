"""Codes and probes: the answers are FAISS's own, and lists found once serve every shard of the same template alone."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from serve.index.codes import Codes, Probes
from serve.index.manifest import ReleaseError
from serve.index.partition import share_of
from serve.index.plan import plan_index
from serve.index.spec import IndexConfig
from serve.index.template import train_template
from serve.index.vectors import JoinedVectors, StoredVectors
from serve.index.writer import write_vectors
from tests.index.parts import unit

NUM, DIM, NPROBE = 10_000, 32, 6


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    return unit(np.repeat(random.standard_normal((200, DIM)), NUM // 200, axis=0) + 0.5 * random.standard_normal((NUM, DIM)))


def filled(folder: Path, vectors_ND: np.ndarray, seed: int = 17, **settings: Any) -> Path:
    """The vectors' files of a shard, its template trained on all of them."""
    folder.mkdir()
    plan = plan_index(len(vectors_ND), DIM, IndexConfig(**settings))
    write_vectors(folder, vectors_ND, train_template(plan, vectors_ND.astype(np.float32), seed), plan.vectors)
    return folder


def asked(num: int = 30) -> np.ndarray:
    return unit(np.random.default_rng(1).standard_normal((num, DIM))).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [{"kind": "ivf_pq4"}, {"kind": "ivf_pq4", "opq": False, "nlist": 8}, {"kind": "ivf_pq4", "hnsw_lists": 8},
     {"kind": "ivf_rabitq"}, {"kind": "ivf_pq8", "pq_bytes": 8, "opq": False}, {"kind": "ivf_sq8"}],
    ids=["short lists", "long lists", "HNSW", "RaBitQ", "PQ8", "SQ8"],
)  # fmt: skip
def test_answers_are_those_of_faiss(tmp_path: Path, vectors: np.ndarray, settings: dict[str, Any]) -> None:
    faiss.omp_set_num_threads(1)
    codes = Codes(filled(tmp_path / "s", vectors, **settings) / "index.faiss")
    whole = faiss.read_index(str(tmp_path / "s" / "index.faiss"))
    faiss.extract_index_ivf(whole).nprobe = NPROBE
    scores, rows = codes.search(Probes(asked()), np.arange(30), 12, NPROBE, None)
    expected, _ = whole.search(asked(), 12)
    np.testing.assert_allclose(np.sort(scores), np.sort(expected), rtol=0.02, atol=0.02)  # of equal codes either row may come
    np.testing.assert_array_less(-1, rows)
    allowed = np.random.default_rng(2).random(NUM) < 0.3
    _, rows = codes.search(Probes(asked()), np.array([3, 20]), 12, codes.lists.nlist, allowed)
    assert rows.shape == (2, 12) and allowed[rows].all()


def test_lists_are_found_once_for_all_shards_of_a_template(tmp_path: Path, vectors: np.ndarray) -> None:
    faiss.omp_set_num_threads(1)
    same = [Codes(filled(tmp_path / name, vectors, kind="ivf_pq4") / "index.faiss") for name in "ab"]
    other = Codes(filled(tmp_path / "c", vectors, seed=3, kind="ivf_pq4") / "index.faiss")
    assert same[0].template == same[1].template != other.template
    probes = Probes(asked())
    for codes in (*same, other):
        alone = Probes(asked())
        for nprobe in (NPROBE, 2, 9):
            for shared, own in zip(probes.of(codes, nprobe), alone.of(codes, nprobe), strict=True):
                np.testing.assert_array_equal(shared, own)
    assert set(probes.nearest) == {same[0].template, other.template}


@pytest.mark.parametrize("kind", ["sq8", "fp16"])
def test_cosines_are_those_of_the_decoded_rows(tmp_path: Path, vectors: np.ndarray, kind: Any) -> None:
    folder = filled(tmp_path / "s", vectors, kind="ivf_pq4", vectors=kind)
    small = filled(tmp_path / "t", vectors[:900], kind="ivf_pq4", vectors=kind)
    parts = [StoredVectors(path, kind, DIM, norms=True) for path in (folder, small)]
    for stored in (JoinedVectors(parts[:1]), JoinedVectors(parts), JoinedVectors(parts[::-1])):
        rows = np.random.default_rng(4).integers(0, len(stored), (30, 50))
        decoded = stored[rows.ravel()].astype(np.float32).reshape(30, 50, DIM)
        expected = np.einsum("qd,qfd->qf", asked(), decoded) / np.linalg.norm(decoded, axis=2)
        np.testing.assert_allclose(stored.cosines(asked(), rows), expected, atol=2e-6)
        assert stored.cosines(asked(), rows[:, :0]).shape == (30, 0)
        np.testing.assert_array_equal(stored[len(stored) - 3 :], stored[np.arange(len(stored) - 3, len(stored))])


def test_candidates_are_spread_over_shards() -> None:
    assert [share_of(800, 1 / num) for num in (1, 2, 8, 800)] == [800, 429, 119, 3]


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"index\.faiss: missing"):
        Codes(tmp_path / "index.faiss")
