"""Ray for the jobs: one connection a process, quiet logs, and settings of actors that must not crash for ever."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.util.annotations import RayDeprecationWarning
from tqdm import tqdm

from jobs.config import JobError, RayConfig

log = logging.getLogger(__name__)

NO_PROGRESS_TIMEOUT_S = 600.0  # Ray Data's own is 1800; ten minutes without one block is a job that hangs
LOG_EVERY_S = 10.0
START_TIMEOUT_S = 60  # Ray's own is 30; a small busy machine was seen to need 36


def start_ray(config: RayConfig) -> None:
    """Connects once: to `config.address`, to the cluster of a submitted job, or to a Ray started for this process."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(config)
    options: dict[str, Any] = {"address": address or "local", "logging_level": logging.ERROR}
    if address is None:  # a running cluster has its sizes already
        options |= {"num_cpus": config.num_cpus, "object_store_memory": config.object_store_bytes}
        options |= {"include_dashboard": False, "log_to_driver": False}  # what matters comes back as an exception
        os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_TIMEOUT_S))
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it takes each restartable actor of Ray Data for an error
    start = time.perf_counter()
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise JobError(f"ray.address={address}: no Ray answers there; start one, or leave ray.address out") from error
    except Exception as error:  # Ray has no class of its own for this
        if "timed out during startup" not in str(error):
            raise
        raise JobError("Ray did not start in time: too much else runs on this machine; run again later") from error
    quiet_ray_data()
    log.info(
        "ray=started address=%s cpus=%g seconds=%.1f",
        address or "local",
        ray.cluster_resources().get("CPU", 0),
        time.perf_counter() - start,
    )


def stop_ray() -> None:
    """Ends the connection, and the Ray started for this process. Does nothing where none was started."""
    if ray.is_initialized():
        ray.shutdown()


def cluster_address(config: RayConfig) -> str | None:
    """The cluster to join (`ray job submit` names it to the entrypoint); None: one of our own."""
    return config.address or os.environ.get("RAY_ADDRESS")


def require(config: RayConfig, cpus: float, gpus: float) -> None:
    """Raises JobError where a Ray of our own is too small: Ray Data would wait for ever. A cluster may still grow."""
    if cluster_address(config) is not None:
        return
    have = ray.cluster_resources()
    for what, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > have.get(what, 0.0):
            raise JobError(
                f"the actor pools of section embed ask for {needed:g} {what}s, this machine's Ray has {have.get(what, 0):g}"
            )


def quiet_ray_data() -> None:
    """Ray Data without its own bars and plans (`Progress` shows the rate), and without silent loss."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # a dropped block would be a log line and no rows
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S


def map_actors(
    dataset: Dataset,
    actor: type,
    arguments: dict[str, Any],
    *,
    actors: int,
    batch_size: int,
    cpus: float,
    gpus: float,
    max_restarts: int,
    calls: int = 1,
) -> Dataset:
    """`dataset` through a fixed pool of `actor(**arguments)`, one Arrow table of up to `batch_size` rows a call.

    `calls`: of one actor at the same time, in threads.
    Ray Data restarts a dying actor without end unless told otherwise; here `max_restarts` bounds that, and so the retries of the
    block it dies of. The number of retries is not bounded by itself: calls to an actor whose node has gone fail several times a
    second, until the cluster knows that it has.
    These two have no named parameter yet (deprecated from 2.60, gone in 2.64): this function is the only place to change.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            actor,
            batch_format="pyarrow",
            batch_size=batch_size,
            compute=ActorPoolStrategy(size=actors, max_concurrent_calls_per_actor=calls, enable_true_multi_threading=calls > 1),
            fn_constructor_kwargs=arguments,
            num_cpus=cpus,
            num_gpus=gpus or None,
            max_restarts=max_restarts,
            max_task_retries=-1,
        )


class Progress:
    """How far a long step is: a bar on a terminal, a structured line every ten seconds elsewhere."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.start = self.logged = time.perf_counter()
        self.bar = tqdm(total=total, desc=name, unit=f" {unit}", disable=not sys.stderr.isatty())

    def add(self, num: int) -> None:
        """`num` more are done."""
        self.done += num
        self.bar.update(num)
        now = time.perf_counter()
        if self.bar.disable and now - self.logged >= LOG_EVERY_S:
            self.logged = now
            rate = self.done / (now - self.start)
            log.info("step=%s %s=%d of=%d per_s=%.1f", self.name, self.unit, self.done, self.total, rate)


@contextmanager
def progress(name: str, total: int, unit: str) -> Iterator[Progress]:
    """A `Progress` that leaves the terminal in order."""
    shown = Progress(name, total, unit)
    try:
        yield shown
    finally:
        shown.bar.close()
