"""The rules of the index plan, and that a template is the same twice."""

import math

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.index.plan import FLAT, POINTS_PER_CENTROID, plan_index, train_template
from serve.index.spec import IndexConfig


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
    assert plan_index(50_000_000, 128, IndexConfig(train_rows=3_000_000)).factory == "OPQ32,IVF32768_HNSW32,PQ32x4fs"
    assert plan_index(50_000_000, 128, IndexConfig(kind="flat")).is_flat
    assert plan_index(50, 128, IndexConfig(kind="ivf_pq")).is_flat  # too few to train on
    with pytest.raises(ValueError, match="pq_bytes=7"):
        plan_index(50_000, 64, IndexConfig(pq_bytes=7))


def test_template_is_the_same_twice() -> None:
    faiss.omp_set_num_threads(1)
    vectors = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)
    plan = plan_index(2000, 16, IndexConfig())
    first, second = (train_template(plan, vectors, 17) for _ in range(2))
    assert first == second and train_template(plan, vectors, 18) != first
