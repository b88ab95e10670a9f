"""The nightly run on a Ray cluster of several nodes, one of which dies in the middle, with Spark on a standalone master."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyspark
import pytest
import ray
from ray.cluster_utils import Cluster

from jobs import nightly, render_catalog
from jobs.config import Config
from tests.nights import held
from tests.parts import ROOT, SPARK, free_port, write_conf

pytestmark = pytest.mark.drill

LONGEST_S = 900
BLOCK_ROWS = 4


@contextlib.contextmanager
def standalone_spark(folder: Path) -> Iterator[str]:
    """URL of a Spark master with one worker, both processes of their own."""
    port = free_port()
    url = f"spark://127.0.0.1:{port}"
    spark_class = str(Path(pyspark.__path__[0]) / "bin" / "spark-class")
    parts = {
        "master.Master": ["--port", str(port)],
        "worker.Worker": ["--cores", "2", "--memory", "2g", "--work-dir", str(folder / "work"), url],
    }
    with contextlib.ExitStack() as stack:
        for name, arguments in parts.items():
            command = [spark_class, f"org.apache.spark.deploy.{name}", "--host", "127.0.0.1", "--webui-port", "0", *arguments]
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield url


@contextlib.contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """A head without CPUs and two nodes with one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def node_of(actor: str) -> str | None:
    """Id of the node that an actor of this class runs on."""
    for found in ray._private.state.actors().values():
        if actor in found["ActorClassName"] and found["State"] == "ALIVE":
            return str(found["Address"]["NodeID"])
    return None


def test_a_node_dies_and_the_result_is_that_of_one_machine(tmp_path: Path) -> None:
    rendered = tmp_path / "rendered"
    sections: dict[str, Any] = {
        "render": {"folder": str(rendered), "num_products": 24, "num_scenes": 4, "with_bad_rows": False},
        "feed": {"uri": str(rendered / "feed.jsonl")},
        "evaluate": {"queries": str(rendered / "queries.jsonl"), "num_queries": 24},
        "embed": {"block_rows": BLOCK_ROWS},
    }
    render_catalog.run(Config.load(write_conf(tmp_path, sections)))
    for name in ("alone", "cluster"):
        (tmp_path / name).mkdir()
    with standalone_spark(tmp_path) as master, ray_cluster() as cluster:
        on_loopback = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        spark = SPARK | {"master": master, "settings": on_loopback}
        conf = write_conf(tmp_path / "cluster", sections | {"spark": spark, "ray": {"address": cluster.address}})
        config = Config.load(conf)
        command = [sys.executable, "-m", "jobs.nightly", "--conf", str(conf)]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": cluster.address})
        try:
            lose_a_node(cluster, config, process)
            assert process.wait(LONGEST_S) == 0
        finally:
            process.kill()
        assert list((tmp_path / "work").glob("app-*")), "the standalone worker had executors of ours"
    alone = Config.load(write_conf(tmp_path / "alone", sections))
    nightly.run(alone)
    assert held(config) == held(alone)


def lose_a_node(cluster: Cluster, config: Config, process: "subprocess.Popen[bytes]") -> None:
    """Kills the node that embeds once a first block is staged; another one joins."""
    deadline = time.monotonic() + LONGEST_S
    while not list(config.store.staging.glob("embed_images/*/rows/part-*.parquet")):
        assert process.poll() is None, f"the run ended with {process.returncode} before a block was embedded"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lost = node_of("Embedder")
    [node] = [node for node in cluster.worker_nodes if node.node_id == lost]
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
