"""Actor pools that end when their actors die, and a Ray that is too small for them."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from jobs.config import JobError, RayConfig
from jobs.raydata.session import map_actors, require, start_ray


def test_a_dying_actor_is_not_restarted_for_ever(tmp_path: Path, ray_local: None) -> None:
    class Dies:  # here, so that it travels by value: workers do not find test modules
        """An actor whose process ends on every batch, as a native library can make it; it leaves a mark a time."""

        def __init__(self, marks: Path) -> None:
            self.marks = marks

        def __call__(self, batch: pa.Table) -> pa.Table:
            (self.marks / str(os.getpid())).touch()
            os._exit(1)

    blocks = ray.data.from_blocks([pa.table({"x": [1]})])
    pool = {"actors": 1, "batch_size": 1, "cpus": 1.0, "gpus": 0.0, "max_restarts": 1}
    dataset = map_actors(blocks, Dies, {"marks": tmp_path}, **pool)
    with pytest.raises(ray.exceptions.RayError):
        list(dataset.iter_batches(batch_size=None))
    assert 1 <= len(list(tmp_path.iterdir())) <= 3


def test_calls_of_one_actor_may_overlap(ray_local: None) -> None:
    class Meets:
        """Each of two calls waits for the other."""

        def __init__(self) -> None:
            self.both = threading.Barrier(2)

        def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
            self.both.wait(30)
            yield batch

    blocks = ray.data.from_blocks([pa.table({"x": [1]}), pa.table({"x": [2]})])
    dataset = map_actors(blocks, Meets, {}, actors=1, batch_size=1, cpus=1.0, gpus=0.0, max_restarts=0, calls=2)
    assert sorted(row["x"] for row in dataset.iter_rows()) == [1, 2]


def test_pools_that_do_not_fit(ray_local: None) -> None:
    config = RayConfig(num_cpus=2)
    require(config, cpus=2.0, gpus=0.0)
    with pytest.raises(JobError, match="3 CPUs, this machine's Ray has 2"):
        require(config, cpus=3.0, gpus=0.0)
    with pytest.raises(JobError, match="1 GPUs"):
        require(config, cpus=1.0, gpus=1.0)


def test_one_ray_a_process(ray_local: None) -> None:
    before = ray.get_runtime_context().gcs_address
    start_ray(RayConfig(num_cpus=1))
    assert ray.get_runtime_context().gcs_address == before
