"""Partitions of several shards: searched as one, whether their codes could be joined or not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from serve.index.codes import Probes
from serve.index.manifest import PartitionSpec, ReleaseError
from serve.index.partition import Partition
from serve.index.plan import IndexPlan, plan_index
from serve.index.shard import Shard
from serve.index.spec import IndexConfig
from serve.index.template import train_template
from serve.index.writer import write_shard
from tests.index.parts import crops_table, products_table, unit

NUM, DIM, PARTS = 6_000, 32, 3
KINDS: dict[str, dict[str, Any]] = {  # settings, and whether their codes are joined
    "4 bits": {"kind": "ivf_pq4"},
    "4 bits, long lists": {"kind": "ivf_pq4", "nlist": 1},
    "8 bits": {"kind": "ivf_sq8"},
    "LSH": {"kind": "lsh", "lsh_bits": 256},
    "flat": {"kind": "flat"},
}


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    styles = random.permutation(np.repeat(random.standard_normal((300, DIM)), NUM // 300, axis=0))
    return unit(styles + 0.5 * random.standard_normal((NUM, DIM)))


def written(folder: Path, vectors_ND: np.ndarray, num_shards: int, plan: IndexPlan, seed: int = 17) -> Partition:
    """The vectors dealt to shards, two photos a product. Whoever asks for one shard gets the rows in the same order."""
    template = train_template(plan, vectors_ND.astype(np.float32), seed) if plan.kind != "flat" else None
    shards = []
    spec = PartitionSpec(
        factory=plan.factory, vectors=plan.vectors, nprobe=max(plan.nlist // 4, 1), refine_factor=20, metric="cosine"
    )
    for i, rows in enumerate(np.array_split(np.arange(len(vectors_ND)), num_shards)):
        names = [f"p{row // 2:05d}" for row in rows]
        part = folder / f"{i}"
        part.mkdir(parents=True)
        write_shard(part, crops_table(names, vectors_ND[rows]), products_table(sorted(set(names))), DIM, template, plan.vectors)
        shards.append(Shard.open(part, spec, DIM))
    return Partition(shards, spec)


def asked(num: int = 40) -> np.ndarray:
    return unit(np.random.default_rng(1).standard_normal((num, DIM))).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_answer_as_one(tmp_path: Path, vectors: np.ndarray, kind: str) -> None:
    """The same rows in one shard and in three: the same nearest crops and products, also under a filter and after deletes."""
    faiss.omp_set_num_threads(1)
    plan = plan_index(NUM, DIM, IndexConfig(opq=False, **KINDS[kind]))
    one, parts = (written(tmp_path / str(num), vectors, num, plan) for num in (1, PARTS))
    assert len(parts.codes) == {"4 bits": 1, "flat": 0}.get(kind, PARTS)
    assert parts.num_rows == one.num_rows == NUM and parts.num_products == one.num_products
    np.testing.assert_array_equal(parts.product_of_row_N, one.product_of_row_N)
    queries = asked()
    allowed = np.random.default_rng(2).random(one.num_products) < 0.4
    least = 0.9 if kind in ("4 bits, long lists", "LSH") else 0.99  # each shard's share of the candidates is a guess

    def same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
        assert np.isclose(found[0], expected[0], atol=0.01).mean() >= least  # stored values round per shard
        shared = [len(np.intersect1d(a, b)) / len(a) for a, b in zip(found[1], expected[1], strict=True)]
        assert np.mean(shared) >= least - 0.03 and (found[1] >= 0).all()

    same(parts.search(queries, 10), one.search(queries, 10))
    same(parts.search_products(queries, 10), one.search_products(queries, 10))
    same(parts.search_products(queries, 10, allowed), one.search_products(queries, 10, allowed))
    same(parts.search_products(queries, 10, exact=True), one.search_products(queries, 10, exact=True))
    deleted = np.unique(one.product_of_row_N[one.search_products(queries, 3)[1]])
    for partition in (one, parts):
        for shard, first, end in zip(partition.shards, partition.product_starts, partition.product_starts[1:], strict=False):
            shard.tombstones.delete(deleted[(deleted >= first) & (deleted < end)] - first)
    found = parts.search_products(queries, 10)
    same(found, one.search_products(queries, 10))
    assert not set(parts.product_of_row_N[found[1]].ravel()) & set(deleted)
    scores, rows = parts.search_products(queries[:1], one.num_products + 5)
    assert (rows >= 0).sum() == one.num_products - len(deleted) and np.isneginf(scores[0, (rows < 0)[0]]).all()


def test_joined_codes_find_what_one_index_finds(tmp_path: Path, vectors: np.ndarray) -> None:
    """Without re-scoring: the candidates of joined lists are those of one index filled with all rows."""
    faiss.omp_set_num_threads(1)
    plan = plan_index(NUM, DIM, IndexConfig())
    one, parts = (written(tmp_path / str(num), vectors, num, plan) for num in (1, PARTS))
    found, expected = (p.codes[0].search(Probes(asked()), np.arange(40), 50, 8, None) for p in (parts, one))
    np.testing.assert_allclose(np.sort(found[0]), np.sort(expected[0]), rtol=1e-5, atol=1e-5)
    assert np.mean([len(np.intersect1d(a, b)) / 50 for a, b in zip(found[1], expected[1], strict=True)]) > 0.98  # ties


MERGED = """
import faiss, numpy as np
from serve.index.codes import merge_lists
random = np.random.default_rng(0)
centres = np.eye(64, dtype=np.float32)
one = faiss.index_factory(64, "IVF64,PQ16x4fs", faiss.METRIC_INNER_PRODUCT)
one.quantizer.add(centres)
one.train(np.repeat(centres, 50, axis=0) + 0.05 * random.standard_normal((3200, 64), np.float32))
into, other = faiss.clone_index(one), faiss.clone_index(one)
block = faiss.downcast_InvertedLists(one.invlists).block_size
parts = [np.repeat(centres, block * more, axis=0) for more in (1, 3)]
parts = [part + 0.05 * random.standard_normal(part.shape, np.float32) for part in parts]
into.add(parts[0]), other.add(parts[1]), one.add(np.concatenate(parts))
assert {into.invlists.list_size(i) for i in range(64)} == {block}
for _ in range(20):
    merged, rest = faiss.clone_index(into), faiss.clone_index(other)
    merge_lists(merged, rest)
    assert (merged.ntotal, rest.ntotal) == (len(parts[0]) + len(parts[1]), 0)
    for found, expected in zip(merged.search(centres, 100), one.search(centres, 100)):
        np.testing.assert_array_equal(found, expected)
"""


def test_lists_as_long_as_a_block_has_bytes_are_merged() -> None:
    """FAISS itself writes beyond its memory there, which ends the process."""
    subprocess.run([sys.executable, "-c", MERGED], check=True)


def test_shards_of_different_templates_are_not_joined(tmp_path: Path, vectors: np.ndarray) -> None:
    plan = plan_index(NUM, DIM, IndexConfig())
    halves = [written(tmp_path / str(seed), vectors[:3000], 1, plan, seed).shards[0] for seed in (17, 3)]
    partition = Partition(halves, halves[0].spec)
    assert len(partition.codes) == 2
    _, rows = partition.search(asked(), 10)
    assert (rows >= 0).all() and (rows >= 3000).any() and (rows < 3000).any()


def test_a_part_of_the_shards_looks_at_its_share(tmp_path: Path, vectors: np.ndarray) -> None:
    """A process that holds one of three shards re-scores fewer candidates than one that holds all, and loses nothing by it."""
    plan = plan_index(NUM, DIM, IndexConfig())
    parts = written(tmp_path / "s", vectors, PARTS, plan)
    whole = parts.search(asked(), 10)
    alone = [Partition([shard], shard.spec, 1 / PARTS).search(asked(), 10)[0] for shard in parts.shards]
    merged = -np.sort(-np.concatenate(alone, axis=1), axis=1)[:, :10]
    assert np.isclose(merged, whole[0], atol=0.01).mean() >= 0.97


def test_an_index_of_another_shard_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    plan = plan_index(NUM, DIM, IndexConfig())
    small, large = (written(tmp_path / str(num), vectors[:num], 1, plan).shards[0] for num in (2_000, 3_000))
    (large.folder / "index.faiss").replace(small.folder / "index.faiss")
    with pytest.raises(ReleaseError, match="3000 rows, its shard has 2000"):
        Partition([small], small.spec)
    (small.folder / "index.faiss").write_bytes(b"IwPQ but no more")
    with pytest.raises(ReleaseError, match=r"index\.faiss: can't be opened"):
        Partition([small], small.spec)
    (small.folder / "index.faiss").unlink()
    with pytest.raises(ReleaseError, match="missing"):
        Partition([small], small.spec)
