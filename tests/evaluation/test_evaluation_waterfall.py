"""Every miss is charged to one stage: the one that was made to lose it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.evaluation.routing import choose_threshold
from jobs.evaluation.waterfall import STAGES, Pair, Waterfall, charge
from jobs.evaluation.waterfall_report import write_waterfall
from serve.index.manifest import Manifest, PartitionSpec
from serve.index.plan import plan_index
from serve.index.release import Release, ShardGroup
from serve.index.search import route
from serve.index.shard import OpenShard, Shard
from serve.index.spec import IndexConfig
from serve.index.template import train_template
from serve.index.writer import write_shard
from tests.index.parts import crops_table, products_table, unit, write_release

DIM, K = 16, 3


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, dict[str, Path]]:
    """Two exact partitions of 40 products, and the file of each shard's vectors."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("r")
    parts = {
        name: ([f"{name}-{i:02d}" for i in range(40)], unit(random.standard_normal((40, DIM)))) for name in ("bags", "shoes")
    }
    write_release(folder / "r", parts)
    opened = Release.open(folder / "r")
    originals = {}
    for shard in opened.group.shards:
        originals[shard.path] = folder / f"{shard.path.replace('/', '-')}.f16"
        shard.shard.vectors_ND[:].tofile(originals[shard.path])
    return opened, originals


def pair(
    product_id: str, found: tuple[int, ...] = (0,), true: tuple[int, ...] = (0,), without_hash: tuple[str, ...] = ()
) -> Pair:
    """A pair that was not found."""
    return Pair("photo.jpg", product_id, (), without_hash, found, true)


def test_each_stage_in_front_of_the_index(release: tuple[Release, dict[str, Path]]) -> None:
    opened, originals = release
    own = opened.product_embedding("bags-07")
    assert own is not None
    embeddings = np.stack([own, -own])
    everywhere, elsewhere = [None, None], [["shoes"], ["shoes"]]
    for stage, asked, routes in (
        ("not_in_catalog", pair("bags-99"), everywhere),
        ("hash_exit", pair("bags-07", (1,), (1,), ("bags-07",)), everywhere),
        ("ranking", pair("bags-07"), everywhere),
        ("detector", pair("bags-07", (1,), (0,)), everywhere),
        ("routing", pair("bags-07"), elsewhere),
        ("embedding", pair("bags-07", (1,), (1,)), everywhere),
    ):
        waterfall = charge([asked], embeddings, routes, opened, originals, K)
        assert [miss.stage for miss in waterfall.misses] == [stage]
        assert waterfall.lost == {name: int(name == stage) for name in STAGES}
    found = Pair("photo.jpg", "bags-07", ("bags-07",), ("bags-07",), (0,), (0,))
    assert charge([found], embeddings, everywhere, opened, originals, K).misses == ()


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_all_misses_are_charged(release: tuple[Release, dict[str, Path]], data: st.DataObject) -> None:
    opened, originals = release
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    embeddings = unit(random.standard_normal((4, DIM))).astype(np.float32)
    names = st.sampled_from([f"bags-{i:02d}" for i in range(42)])
    crops = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
    ranked = st.lists(names, max_size=3).map(tuple)
    pairs = data.draw(st.lists(st.builds(Pair, st.just("p"), names, ranked, ranked, crops, crops), min_size=1, max_size=8))
    routes = data.draw(st.lists(st.sampled_from([None, ["bags"], ["shoes"]]), min_size=4, max_size=4))
    waterfall = charge(pairs, embeddings, routes, opened, originals, K)
    missed = [asked.product_id for asked in pairs if asked.product_id not in asked.ranked[:K]]
    assert [miss.product_id for miss in waterfall.misses] == missed
    assert sum(waterfall.lost.values()) == len(missed) and set(waterfall.lost) == set(STAGES)
    assert sum(waterfall.metrics().values()) == pytest.approx(len(missed) / len(pairs), abs=1e-3)


def test_stages_of_the_index(tmp_path: Path) -> None:
    """An index of few lists and coarse codes loses some of its own vectors' neighbours: to its lists, its codes, its rounding."""
    random, num = np.random.default_rng(1), 4000
    vectors = unit(np.repeat(random.standard_normal((400, DIM)), 10, axis=0) + 0.8 * random.standard_normal((num, DIM)))
    plan = plan_index(num, DIM, IndexConfig(nlist=64, pq_bytes=1, opq=False))
    template = train_template(plan, vectors.astype(np.float32), 17)
    names = [f"p{i:04d}" for i in range(num)]
    folder, ordered = tmp_path / "s", tmp_path / "s.f16"
    folder.mkdir()
    write_shard(folder, crops_table(names, vectors), products_table(names), DIM, template, plan.vectors, ordered)
    spec = PartitionSpec(factory=plan.factory, vectors=plan.vectors, nprobe=1, refine_factor=2, metric="cosine")
    opened = Release.__new__(Release)  # the parts that charging uses
    shard = OpenShard("s", "all", 0, Shard.open(folder, spec, DIM))
    opened.group = ShardGroup([shard], DIM, 1)
    opened.product = lambda product_id: {}  # type: ignore[method-assign]
    queries = unit(vectors[::20] + 0.1 * random.standard_normal((200, DIM))).astype(np.float32)
    exact = np.argsort(-queries @ vectors.astype(np.float32).T, axis=1)[:, :10]
    pairs = []
    for q, found in enumerate(opened.group.search(queries, 10)):
        ranked = tuple(candidate.product_id for candidate in found)
        pairs += [Pair("p", names[row], ranked, ranked, (q,), (q,)) for row in exact[q]]
    waterfall = charge(pairs, queries, [None] * 200, opened, {"s": ordered}, 10)
    assert waterfall.lost["coarse_list"] > 50 and waterfall.lost["codes"] > 50 and waterfall.lost["refine"] > 0
    assert sum(waterfall.lost[stage] for stage in ("coarse_list", "codes", "refine")) >= len(waterfall.misses) - 2  # ties
    assert opened.group.partitions["all"].spec == spec


def test_budget_table_and_picture(tmp_path: Path, release: tuple[Release, dict[str, Path]]) -> None:
    opened, originals = release
    waterfall = charge([pair("bags-99")] * 3 + [pair("bags-07")], np.eye(1, DIM, dtype=np.float32), [None], opened, originals, K)
    assert waterfall.over_budget({}) == [] and waterfall.over_budget({"not_in_catalog": 0.75}) == []
    [fault] = waterfall.over_budget({"not_in_catalog": 0.5})
    assert "not_in_catalog loses 3 of 4" in fault
    write_waterfall(tmp_path, waterfall)
    assert {path.name for path in tmp_path.iterdir()} == {"waterfall.txt", "waterfall.json", "waterfall.png"}
    assert Waterfall(4, waterfall.misses).table().splitlines()[2].split()[:3] == ["not_in_catalog", "3", "1"]


@settings(deadline=None, max_examples=50)
@given(data=st.data(), max_loss=st.floats(0, 0.5))
def test_threshold_keeps_its_promise(release: tuple[Release, dict[str, Path]], data: st.DataObject, max_loss: float) -> None:
    """At most the stated share of the answers lies in a partition that the chosen threshold does not search."""
    manifest: Manifest = release[0].manifest
    probs = st.floats(0, 1).map(lambda p: {"bags/totes": p, "shoes": 1 - p})
    categories = st.sampled_from(["bags", "shoes/boots", None])
    asked = data.draw(st.lists(st.tuples(categories, st.lists(probs, min_size=1)), min_size=1))
    routing = choose_threshold(manifest, asked, max_loss)
    chosen = manifest.model_copy(update={"route_threshold": routing.threshold})
    lost = 0
    for category, predictions in asked:
        routes = [route(chosen, probs) for probs in predictions]
        own = (category or "").split("/")[0]
        lost += not any(names is None or own in names for names in routes)
    assert lost <= max_loss * len(asked)
    assert routing.threshold > 0 and 0 < routing.searched_frac <= 1
