"""The rules of the index plan, and that a template is the same twice."""

import math
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.index.manifest import ReleaseError
from serve.index.plan import FLAT, POINTS_PER_CENTROID, build_ram_bytes, plan_index
from serve.index.spec import IndexConfig
from serve.index.template import fit_of, train_template


@given(st.integers(0, 300_000_000), st.sampled_from([32, 96, 128, 256, 512, 576, 768]))
def test_rules(num_rows: int, dim: int) -> None:
    config = IndexConfig()
    plan = plan_index(num_rows, dim, config)
    if num_rows < config.flat_below_rows:
        assert plan.factory == FLAT and plan.nprobes == (1,)
        return
    assert plan.nlist * POINTS_PER_CENTROID <= min(num_rows, config.train_rows)
    assert plan.nlist <= 6 * math.sqrt(num_rows)
    assert plan.nprobes[0] == 1 and plan.nprobes[-1] == plan.nlist and list(plan.nprobes) == sorted(set(plan.nprobes))
    assert faiss.index_factory(dim, plan.factory, faiss.METRIC_INNER_PRODUCT).d == dim


def test_settings_win() -> None:
    assert plan_index(50_000, 64, IndexConfig(nlist=100, pq_bytes=16, opq=False)).factory == "IVF100,PQ32x4fs"
    assert plan_index(50_000_000, 128, IndexConfig(train_rows=3_000_000)).factory == "OPQ64,IVF32768_HNSW32,PQ64x4fs"
    assert plan_index(50_000, 64, IndexConfig()).factory == "OPQ32,IVF1024,PQ32x4fs"
    assert plan_index(50_000, 512, IndexConfig()).factory == "OPQ128,IVF1024,PQ128x4fs"
    assert plan_index(50_000_000, 128, IndexConfig(kind="flat")).is_flat
    assert plan_index(50, 128, IndexConfig(kind="ivf_pq4")).is_flat  # too few to train on
    with pytest.raises(ValueError, match="pq_bytes=7"):
        plan_index(50_000, 64, IndexConfig(pq_bytes=7))


@pytest.mark.parametrize(
    ("num_rows", "num_shards", "nlist"),
    [(125_000, 1, 1024), (125_000, 8, 4096), (125_000, 80, 4096), (12_500, 8, 512), (1_000_000, 1, 4096)],
)
def test_lists_of_several_shards(num_rows: int, num_shards: int, nlist: int) -> None:
    assert plan_index(num_rows, 256, IndexConfig(), total_rows=num_shards * num_rows).nlist == nlist


def test_kinds_and_budget() -> None:
    factories = {
        "ivf_pq4": ("OPQ64,IVF4096,PQ64x4fs", "sq8", 40),
        "ivf_pq8": ("OPQ64,IVF4096,PQ64x8", "none", 72),
        "ivf_rabitq": ("RR256,IVF4096,RaBitQfs", "sq8", 48),
        "ivf_sq8": ("IVF4096,SQ8", "none", 264),
        "lsh": ("LSH1024", "sq8", 128),
        "flat": (FLAT, "fp16", 0),
    }
    for kind, (factory, vectors, ram_bytes) in factories.items():
        plan = plan_index(1_000_000, 256, IndexConfig(kind=kind))
        assert (plan.factory, plan.vectors, plan.ram_bytes) == (factory, vectors, ram_bytes)
    assert plan_index(1_000_000, 256, IndexConfig(), ram_bytes=25).factory == "OPQ32,IVF4096,PQ32x4fs"
    with pytest.raises(ValueError, match=r"index\.max_ram_bytes leaves 3\.0 bytes for a code of 256"):
        plan_index(1_000_000, 256, IndexConfig(kind="ivf_sq8"), ram_bytes=11)
    assert plan_index(1_000_000, 256, IndexConfig(hnsw_lists=1000)).factory == "OPQ64,IVF4096_HNSW32,PQ64x4fs"
    small = plan_index(100_000, 256, IndexConfig())
    assert build_ram_bytes(small, 100_000, 256) < build_ram_bytes(small, 1_000_000, 256) < 256 * 2 * 1_000_000 + 3e8


@pytest.mark.parametrize("kind", ["ivf_pq4", "lsh"])
def test_fit_notices_drift(kind: Any) -> None:
    random = np.random.default_rng(1)
    centres = random.standard_normal((40, 16))

    def drawn(means: np.ndarray) -> np.ndarray:
        vectors = means[random.integers(0, 40, 3000)] + 0.2 * random.standard_normal((3000, 16))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    template = train_template(plan_index(3000, 16, IndexConfig(kind=kind)), drawn(centres), 17)
    same, other = fit_of(template, drawn(centres)), fit_of(template, drawn(random.standard_normal((40, 16))))
    assert other > 1.5 * same if kind == "ivf_pq4" else other == same == 1.0


def test_no_gpu_is_an_error() -> None:
    if faiss.get_num_gpus():
        pytest.skip("there is one")
    with pytest.raises(ReleaseError, match="train_on_gpu"):
        train_template(plan_index(2000, 16, IndexConfig()), np.eye(2000, 16, dtype=np.float32), 17, on_gpu=True)


def test_template_is_the_same_twice() -> None:
    faiss.omp_set_num_threads(1)
    vectors = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)
    plan = plan_index(2000, 16, IndexConfig())
    first, second = (train_template(plan, vectors, 17) for _ in range(2))
    assert first == second and train_template(plan, vectors, 18) != first
