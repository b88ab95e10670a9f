"""Shards: exact, IVF-PQ, distinct products, filters, and what they refuse."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.index.compact import living_rows
from serve.index.exact import exact_search
from serve.index.filters import Filters, allowed_products
from serve.index.manifest import PartitionSpec, ReleaseError
from serve.index.partition import Partition
from serve.index.plan import FLAT, IndexPlan, plan_index
from serve.index.shard import Shard
from serve.index.spec import IndexConfig, VectorKind
from serve.index.template import train_template
from serve.index.tombstones import Tombstones
from serve.index.writer import write_shard
from tests.index.parts import crops_table, products_table, searched, unit

DIM, NUM_ROWS, NUM_PRODUCTS = 32, 20_000, 4_000


def spec(factory: str = FLAT, nprobe: int = 1, vectors: VectorKind = "fp16") -> PartitionSpec:
    """Search settings."""
    return PartitionSpec(factory=factory, vectors=vectors, nprobe=nprobe, refine_factor=10, metric="cosine")


def written(
    folder: Path, product_ids: list[str], vectors: np.ndarray, template: bytes | None = None, kind: VectorKind = "fp16"
) -> Path:
    """A shard on disk."""
    folder.mkdir(exist_ok=True)
    write_shard(folder, crops_table(product_ids, vectors), products_table(product_ids), vectors.shape[1], template, kind)
    return folder


@pytest.fixture(scope="module")
def plan() -> IndexPlan:
    return plan_index(NUM_ROWS, DIM, IndexConfig())


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory, plan: IndexPlan) -> Path:
    """20,000 photos of 4,000 products, clustered as embeddings are, in an IVF-PQ shard."""
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(0)
    styles = random.standard_normal((200, DIM))
    centres = styles[random.integers(0, 200, NUM_PRODUCTS)] + 0.5 * random.standard_normal((NUM_PRODUCTS, DIM))
    owner = random.integers(0, NUM_PRODUCTS, NUM_ROWS)
    vectors = unit(centres[owner] + 0.25 * random.standard_normal((NUM_ROWS, DIM)))
    template = train_template(plan, vectors[:10_000].astype(np.float32), 17)
    return written(tmp_path_factory.mktemp("shard") / "big", [f"sku-{p:05d}" for p in owner], vectors, template)


def queries_of(partition: Partition, num: int = 100) -> np.ndarray:
    """Stored vectors, moved a little."""
    random = np.random.default_rng(1)
    vectors = partition.vectors_ND[random.choice(partition.num_rows, num, replace=False)]
    return unit(vectors + 0.05 * random.standard_normal(vectors.shape)).astype(np.float32)


def test_ivf_pq_recall(big: Path, plan: IndexPlan) -> None:
    partition = searched(big, spec(plan.factory, 32), DIM)
    queries = queries_of(partition)
    scores, rows = partition.search(queries, 10)
    exact_scores, exact_rows = exact_search(queries, partition.vectors_ND, 10)
    recall = np.mean([len(set(found) & set(exact)) / 10 for found, exact in zip(rows, exact_rows, strict=True)])
    assert recall >= 0.95
    both = rows == exact_rows
    np.testing.assert_allclose(scores[both], exact_scores[both], atol=1e-5)
    narrow = partition.search(queries, 10, nprobe=1)[0]
    assert narrow.sum() < scores.sum()


KINDS = {  # kind: (stored vectors, floor of recall@10)
    "ivf_pq4": ("sq8", 0.95),
    "ivf_rabitq": ("sq8", 0.95),
    "ivf_sq8": ("none", 0.95),
    "ivf_pq8": ("none", 0.2),
    "lsh": ("sq8", 0.9),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(tmp_path: Path, kind: Any) -> None:
    """Trained, filled, mapped: the neighbours, their cosines, filters, distinct products, the stored embedding."""
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(3)
    vectors = unit(np.repeat(random.standard_normal((1000, 64)), 10, axis=0) + 0.6 * random.standard_normal((10_000, 64)))
    owner = [f"sku-{i // 5:04d}" for i in range(len(vectors))]
    plan = plan_index(
        len(vectors), 64, IndexConfig(kind=kind, opq=kind == "ivf_pq4", pq_bytes=4 * (kind == "ivf_pq8"), lsh_bits=512)
    )
    assert plan.kind == kind and plan.vectors == KINDS[kind][0]
    template = train_template(plan, vectors.astype(np.float32), 17)
    folder = written(tmp_path / "s", owner, vectors, template, plan.vectors)
    bytes_a_row = (folder / "index.faiss").stat().st_size - len(template)
    assert bytes_a_row / len(vectors) == pytest.approx(plan.ram_bytes, rel=0.35)  # fast-scan rounds each list up to 32 rows
    partition = searched(folder, spec(plan.factory, 32, plan.vectors), 64)
    queries = unit(vectors[::100] + 0.05 * random.standard_normal((100, 64))).astype(np.float32)
    exact_scores, exact_rows = exact_search(queries, vectors, 10)
    scores, rows = partition.search(queries, 10)
    recall = np.mean([len(set(found) & set(exact)) / 10 for found, exact in zip(rows, exact_rows, strict=True)])
    assert recall >= KINDS[kind][1]
    same = rows == exact_rows
    np.testing.assert_allclose(scores[same], exact_scores[same], atol=0.01 if kind != "ivf_pq8" else 0.5)
    np.testing.assert_allclose(
        partition.shards[0].embedding(77), vectors[77].astype(np.float32), atol=0.02 if kind != "ivf_pq8" else 0.5
    )
    allowed = random.random(partition.num_products) < 0.3
    scores, rows = partition.search_products(queries, 12, allowed)
    assert (rows >= 0).all() and allowed[partition.product_of_row_N[rows]].all()
    assert all(len(set(found)) == 12 for found in partition.product_of_row_N[rows])
    assert (partition.search(queries[:1], 20_000)[1] >= 0).sum() <= 10_000  # k larger than the partition


def test_index_is_mapped_not_read(big: Path, plan: IndexPlan) -> None:
    partition = searched(big, spec(plan.factory), DIM)
    assert isinstance(partition.shards[0].vectors_ND.codes_NB.base, np.memmap)
    maps = Path("/proc/self/maps").read_text()
    assert all(str(big / name) in maps for name in ("index.faiss", "vectors.f16", "hashes.u8", "rows.arrow", "products.arrow"))


def test_k_distinct_products(big: Path, plan: IndexPlan) -> None:
    partition = searched(big, spec(plan.factory, 1), DIM)
    queries = queries_of(partition, 20)
    scores, rows = partition.search_products(
        queries, 300
    )  # more than one list holds: fetches and probes more until there are 300
    products = partition.product_of_row_N[rows]
    assert (rows >= 0).all() and all(len(set(found)) == 300 for found in products)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_more_than_there_are(big: Path, plan: IndexPlan) -> None:
    partition = searched(big, spec(plan.factory, 1), DIM)
    num = partition.num_products
    scores, rows = partition.search_products(queries_of(partition, 2), num + 50)
    assert ((rows >= 0).sum(axis=1) == num).all() and np.isneginf(scores[:, num:]).all()
    flat = searched(big, spec(), DIM)
    np.testing.assert_allclose(flat.search_products(queries_of(partition, 2), num + 50)[0], scores, atol=1e-5)


@pytest.mark.parametrize("num_allowed", [1, 7, 40, 2000])
def test_filtered_search_is_complete(big: Path, plan: IndexPlan, num_allowed: int) -> None:
    partition, flat = searched(big, spec(plan.factory, 32), DIM), searched(big, spec(), DIM)
    allowed = np.zeros(partition.num_products, bool)
    allowed[np.random.default_rng(2).choice(len(allowed), num_allowed, replace=False)] = True
    queries = queries_of(partition, 20)
    scores, rows = partition.search_products(queries, 10, allowed)
    exact_scores, exact_rows = flat.search_products(queries, 10, allowed)
    assert (rows >= 0).sum() == (exact_rows >= 0).sum() == 20 * min(10, num_allowed)
    assert allowed[partition.product_of_row_N[rows[rows >= 0]]].all()
    assert np.isclose(scores, exact_scores, atol=1e-5).mean() >= (0.95 if num_allowed > 100 else 1.0)


def test_flat_equals_definition(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    owner, vectors = random.integers(0, 40, 300), unit(random.standard_normal((300, 16)))
    partition = searched(written(tmp_path / "s", [f"p{p:02d}" for p in owner], vectors), spec(), 16)
    queries = unit(random.standard_normal((5, 16))).astype(np.float32)
    scores, rows = partition.search_products(queries, 7)
    vectors = partition.vectors_ND[:].astype(np.float32)
    cosines = queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
    products = partition.product_of_row_N
    for q in range(5):
        best = sorted((cosines[q][products == p].max() for p in np.unique(products)), reverse=True)
        np.testing.assert_allclose(scores[q], best[:7], atol=1e-5)
        np.testing.assert_allclose(cosines[q][rows[q]], scores[q], atol=1e-5)


def test_empty_shard(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    write_shard(folder, crops_table(["p1"], unit(np.ones((1, 8)))).slice(0, 0), products_table([]), 8, None)
    partition = searched(folder, spec(), 8)
    query = unit(np.ones((1, 8))).astype(np.float32)
    assert (
        partition.num_rows == 0
        and (partition.search(query, 3)[1] == -1).all()
        and (partition.search_products(query, 3)[1] == -1).all()
    )
    assert partition.shards[0].records.find("p1") is None


def test_records(tmp_path: Path) -> None:
    ids = ["p2", "p1", "p1", "ä9", "p10"]
    vectors = unit(np.random.default_rng(5).standard_normal((5, 8)))
    records = Shard.open(written(tmp_path / "s", ids, vectors), spec(), 8).records
    assert [records.product_id(i) for i in range(4)] == ["p1", "p10", "p2", "ä9"]
    for product_id in ids:
        place = records.find(product_id)
        assert place is not None and records.attributes(place)["title"] == f"Title {product_id}"
    assert records.find("p") is None and records.find("zz") is None
    assert records.attributes(0)["image_uri"] == "file:///photos/1.jpg"  # the first by position


def test_filters(tmp_path: Path) -> None:
    ids = [f"p{n}" for n in range(1, 10)]
    vectors = unit(np.random.default_rng(6).standard_normal((9, 8)))
    folder = tmp_path / "s"
    folder.mkdir()
    write_shard(folder, crops_table(ids, vectors), products_table(ids, "apparel/shoes"), 8, None)
    records = Shard.open(folder, spec(), 8).records

    def passing(filters: Filters) -> list[str]:
        allowed = allowed_products(records, filters)
        assert allowed is not None
        return [records.product_id(int(p)) for p in np.flatnonzero(allowed)]

    assert allowed_products(records, None) is None and allowed_products(records, Filters()) is None
    assert passing(Filters(price_min=3, price_max=4)) == ["p3", "p4"]
    assert passing(Filters(available=True)) == ["p2", "p4", "p6", "p8"]
    assert passing(Filters(brand="b0")) == ["p3", "p6", "p9"] and passing(Filters(gender="women")) == []
    assert passing(Filters(category="apparel")) == passing(Filters(category="apparel/shoes/")) == sorted(ids)
    assert passing(Filters(category="app")) == []
    assert passing(Filters(without=frozenset({"p1", "nobody"}))) == sorted(ids)[1:]


BAD_VECTORS = {"nan": np.nan, "infinite": np.inf, "zero": 0.0, "long": 2.0}


@pytest.mark.parametrize("bad", BAD_VECTORS)
def test_bad_vectors_are_refused(tmp_path: Path, bad: str) -> None:
    vectors = unit(np.random.default_rng(7).standard_normal((5, 8)))
    vectors[3] = np.full(8, BAD_VECTORS[bad])
    with pytest.raises(ReleaseError, match="row 3"):
        written(tmp_path / "s", [f"p{i}" for i in range(5)], vectors)


def test_wrong_width_is_refused(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(8).standard_normal((5, 8)))
    (tmp_path / "s").mkdir()
    with pytest.raises(ReleaseError, match="expected 32 bytes"):
        write_shard(tmp_path / "s", crops_table(["a1"] * 5, vectors), products_table(["a1"]), 16, None)
    folder = written(tmp_path / "t", ["a1"] * 5, vectors)
    with pytest.raises(ReleaseError, match=r"vectors\.f16"):
        Shard.open(folder, spec(), 12)


def test_doubled_rows_and_lost_products_are_refused(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(9).standard_normal((4, 8)))
    crops = crops_table(["a1", "a1", "a2", "a3"], vectors)
    (tmp_path / "s").mkdir()
    with pytest.raises(ReleaseError, match="doubled rows"):
        write_shard(tmp_path / "s", pa.concat_tables([crops, crops.slice(2, 1)]), products_table(["a1", "a2", "a3"]), 8, None)
    for products in (["a1", "a2"], ["a1", "a2", "a3", "a4"]):
        with pytest.raises(ReleaseError, match="not the same"):
            write_shard(tmp_path / "s", crops, products_table(products), 8, None)
    no_whole = crops.set_column(crops.column_names.index("crop"), "crop", pa.array([0, 0, 0, 1], pa.int32()))
    with pytest.raises(ReleaseError, match="without crop 0"):
        write_shard(tmp_path / "s", no_whole, products_table(["a1", "a2", "a3"]), 8, None)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_deleted_products_never_come_back(data: st.DataObject, some: Path, plan: IndexPlan) -> None:
    """Deletes, saved and loaded, alone and under a filter, by index and by scan; and the compacted shard answers alike."""
    searching = searched(some, spec(), DIM)
    [shard], num = searching.shards, searching.num_products
    deleted = data.draw(st.sets(st.integers(0, num - 1), max_size=num))
    shard.tombstones.delete(deleted)
    path = some.parent / "tombstones.bits"
    shard.tombstones.save(path)
    shard.tombstones = Tombstones.load(path, num)
    assert shard.tombstones.num_deleted == len(deleted)
    allowed = data.draw(st.none() | st.sets(st.integers(0, num - 1)).map(lambda kept: np.isin(np.arange(num), list(kept))))
    scores, rows = searching.search_products(queries_of(searching, 3), 8, allowed)
    wanted = (set(range(num)) if allowed is None else set(np.flatnonzero(allowed).tolist())) - deleted
    for found in rows:
        products = searching.product_of_row_N[found[found >= 0]].tolist()
        assert len(products) == len(set(products)) == min(8, len(wanted)) and set(products) <= wanted
    crops, products = living_rows([shard])
    with TemporaryDirectory() as temporary:
        write_shard(Path(temporary), crops, products, DIM, None)
        compacted = searched(Path(temporary), spec(), DIM)
        assert compacted.num_products == num - len(deleted)
        if allowed is None:
            np.testing.assert_allclose(compacted.search_products(queries_of(searching, 3), 8)[0], scores, atol=1e-3)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat shard of 60 rows of 25 products."""
    random = np.random.default_rng(8)
    vectors = unit(random.standard_normal((60, DIM)))
    return written(tmp_path_factory.mktemp("some") / "s", [f"p{n:02d}" for n in random.integers(0, 25, 60)], vectors)


def test_deleted_from_an_index(big: Path, plan: IndexPlan) -> None:
    partition = searched(big, spec(plan.factory, 32), DIM)
    queries = queries_of(partition, 20)
    first = partition.product_of_row_N[partition.search_products(queries, 3)[1]]
    partition.shards[0].tombstones.delete(np.unique(first).tolist())
    again = partition.product_of_row_N[partition.search_products(queries, 3)[1]]
    assert not set(again.ravel()) & set(first.ravel())


def test_two_shards_as_one(tmp_path: Path) -> None:
    """Merged rows answer as the two did together; photos, hashes and attributes come along."""
    random = np.random.default_rng(10)
    vectors = unit(random.standard_normal((40, 8)))
    parts = [written(tmp_path / str(i), [f"p{i}{n % 7}" for n in range(20)], vectors[20 * i : 20 * i + 20]) for i in range(2)]
    shards = [Shard.open(part, spec(), 8) for part in parts]
    crops, products = living_rows(shards)
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one", crops, products, 8, None)
    one = searched(tmp_path / "one", spec(), 8)
    query = unit(random.standard_normal((1, 8))).astype(np.float32)
    both = Partition(shards, spec()).search_products(query, 5)[0]
    np.testing.assert_allclose(one.search_products(query, 5)[0], both, atol=1e-3)
    assert one.num_products == 14 and {h.tobytes() for h in one.shards[0].hashes_M32} == {
        h.tobytes() for shard in shards for h in shard.hashes_M32
    }


def test_tombstones_of_another_shard_are_refused(tmp_path: Path) -> None:
    Tombstones(100).save(tmp_path / "t")
    with pytest.raises(ReleaseError, match="another shard"):
        Tombstones.load(tmp_path / "t", 9)
    assert Tombstones.load(tmp_path / "none", 9).num_deleted == 0
