"""Predicted bytes against real shards at three sizes; the tail of many shards; what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.capacity.calibration import clustered, measure_rates
from jobs.capacity.hedging import simulate
from jobs.capacity.model import Machines, Rates, plan_capacity, shard_cost
from serve.index.plan import plan_index
from serve.index.records import RECORD_FILES
from serve.index.spec import IndexConfig, IndexKind
from serve.index.template import train_template
from tests.bench.index_shard import write_bench_shard

DIM = 64
RATES = Rates(
    nlist=1024,
    train_rows=50_000,
    train_s=5.0,
    lists_train_s=2.0,
    add_s_per_row=2e-5,
    coarse_frac=0.6,
    list_ms=2e-5,
    row_ms=2e-4,
    fixed_ms=0.1,
)
MACHINES = Machines(8, 900.0, 2.5, 8.0, 32, 256 * 10**9, 7_500 * 10**9, 2.0, 200.0, 50.0)


def real_shard(folder: Path, num: int) -> dict[str, int]:
    """Bytes of its files."""
    index = IndexConfig(opq=False)
    plan, vectors = plan_index(num, DIM, index), clustered(num, DIM)
    template = train_template(plan, vectors[:20_000], 17) if not plan.is_flat else None
    folder.mkdir()
    write_bench_shard(folder, vectors.astype(np.float16), template, plan.vectors)
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def test_bytes_are_those_of_real_shards(tmp_path: Path) -> None:
    """Records are measured on a small one, the rest follows from the formats."""
    small = real_shard(tmp_path / "small", 500)
    record_bytes = sum(size for name, size in small.items() if name in RECORD_FILES) / 500
    for num in (2_000, 8_000, 60_000):
        real = real_shard(tmp_path / str(num), num)
        cost = shard_cost(num, num, DIM, IndexConfig(opq=False), RATES, record_bytes)
        assert cost.total_disk_bytes == pytest.approx(sum(real.values()), rel=0.2)
        assert cost.ram_bytes == pytest.approx(real["index.faiss"], rel=0.2)


@settings(deadline=None)
@given(st.integers(10**6, 10**10), st.integers(10**5, 10**8))
def test_plans_hold_everything(num_images: int, rows_per_shard: int) -> None:
    machines = replace(MACHINES, target_ms=1e4)
    plan = plan_capacity(num_images, 2.0, 300.0, rows_per_shard, DIM, IndexConfig(), RATES, machines)
    assert plan.num_shards * plan.shard.rows >= 2 * num_images > (plan.num_shards - 1) * rows_per_shard
    assert plan.ram_bytes <= plan.nodes * machines.node_ram_bytes and sum(plan.disk_bytes.values()) <= plan.nodes * 7.5e12
    twice = plan_capacity(2 * num_images, 2.0, 300.0, rows_per_shard, DIM, IndexConfig(), RATES, machines)
    assert twice.gpu_hours == pytest.approx(2 * plan.gpu_hours) and twice.price_per_month >= plan.price_per_month


def test_a_shard_slower_than_the_target_is_refused() -> None:
    with pytest.raises(ValueError, match="rows_per_shard=1000000000"):
        plan_capacity(10**10, 1.0, 300.0, 10**9, DIM, IndexConfig(), RATES, replace(MACHINES, target_ms=5.0))


def test_hedging_cuts_the_tail() -> None:
    latencies = np.random.default_rng(0).lognormal(0.5, 0.2, 2000)
    latencies[::50] *= 10  # a pause of the machine, now and then
    one, hundred = simulate(latencies, (1, 100), queries=4000)
    assert hundred.plain_ms[0] > one.plain_ms[0] and hundred.hedged_ms[1] < 0.8 * hundred.plain_ms[1]
    assert one.plain_ms[0] == pytest.approx(np.median(latencies), rel=0.1) and one.extra_frac == pytest.approx(0.05, abs=0.02)


def test_calibration_needs_lists() -> None:
    with pytest.raises(ValueError, match=r"index\.kind=flat"):
        measure_rates(5_000, 16, IndexConfig(kind="flat"))


@pytest.mark.parametrize("kind", ["auto", "ivf_rabitq", "ivf_sq8"])  # fast-scan lists of both sorts, plain ones
def test_lists_of_every_sort_are_calibrated(kind: IndexKind) -> None:
    rates = measure_rates(5_000, 16, IndexConfig(kind=kind))
    assert rates.train_s > 0 and rates.add_s_per_row > 0 and rates.fixed_ms > 0 and 0 < rates.coarse_frac <= 1
