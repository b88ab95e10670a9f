"""A nightly run is a record, one at a time; a killed one is taken over; who should hear of a failure does."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from jobs import nightly
from jobs.config import Config, JobError
from jobs.run_lease import BUSY_EXIT_CODE, hold_lease, lease_path, read_holder
from jobs.run_records import notify, read_rows, show_status
from jobs.runs import Run, cpu_seconds_since, cpu_times
from jobs.tables import TABLE_NAMES, Tables, table_version
from serve.settings import ConfigError
from tests.parts import ROOT, BuiltStore, free_port, write_conf

HOLD = """
import sys, time
from pathlib import Path
from jobs.config import Config
from jobs.run_lease import hold_lease
from jobs.runs import Run
config = Config.load(Path(sys.argv[1]))
with hold_lease(config.store, config.nightly, Run("nightly")) as (lease, _):
    lease.enter("embed_images")
    print("held", flush=True)
    time.sleep(60)
"""


def config_of(folder: Path, **nightly_settings: Any) -> Config:
    return Config.load(write_conf(folder, {"nightly": nightly_settings, "feed": {"uri": str(folder / "feed.jsonl")}}))


@contextmanager
def holder_process(conf: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lease, until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(conf)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_run_at_a_time_and_a_killed_one_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path)
    with holder_process(tmp_path / "conf.yaml") as process:
        with pytest.raises(JobError, match=f"another run is on: nightly .* pid {process.pid}, in embed_images") as busy:
            nightly.run(config)
        assert busy.value.exit_code == BUSY_EXIT_CODE == 4
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (summary["outcome"], summary["exit_code"], summary["stages"]) == ("busy", 4, [])
        assert f"pid {process.pid}" in show_status(config) and "running" in show_status(config)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert "killed" in show_status(config)
        with hold_lease(config.store, config.nightly, Run("nightly")) as (lease, killed):
            assert killed is not None and killed.pid == process.pid and killed.stage == "embed_images"
            assert lease.held()
    assert not lease_path(config.store).exists() and "no run is on" in show_status(config)


def test_a_silent_run_of_another_machine_is_taken_over(tmp_path: Path) -> None:
    """Whatever the clocks say: only the file system's own times are compared."""
    config = config_of(tmp_path, lease_s=3.0, heartbeat_s=0.5)
    with hold_lease(config.store, config.nightly, Run("nightly")) as (lease, _):
        path = lease_path(config.store)
        elsewhere = json.loads(path.read_text()) | {"machine": "another", "run_id": "other"}
        path.write_text(json.dumps(elsewhere))
        with pytest.raises(JobError, match="another run is on"), hold_lease(config.store, config.nightly, Run("nightly")):
            pass
        with pytest.raises(JobError, match="taken over by another run"):
            lease.enter("train_index")
        os.utime(path, (time.time() - 4, time.time() - 4))
        with hold_lease(config.store, config.nightly, Run("nightly")) as (_, killed):
            assert killed is not None and killed.run_id == "other"
    assert read_holder(path) is None


def test_every_run_is_a_record(built_store: BuiltStore) -> None:
    config = built_store.config
    first = read_rows(Tables(config.store.tables))[0]
    assert (first["outcome"], first["exit_code"], first["message"], first["pid"]) == ("published", 0, "", os.getpid())
    stages = {stage["name"]: json.loads(stage["counts"]) for stage in first["stages"]}
    assert list(stages) == [name for name, _ in nightly.STAGES]
    assert stages["curate_catalog"]["products"] == 40 and stages["embed_images"]["images_in"] > 40
    embedded = stages["embed_images"]
    assert embedded["images_in"] == embedded["embedded"] + embedded["duplicates"] + embedded["rejected"]
    assert first["release_id"] == stages["publish_release"]["release_id"]
    versions = dict(first["versions"])
    assert versions["products"] >= 1 and set(versions) <= set(TABLE_NAMES)
    assert first["cpu_s"] > 0 and first["seconds"] == pytest.approx(sum(s["seconds"] for s in first["stages"]), abs=0.1)
    client = MlflowClient(config.registry.uri)
    experiment = client.get_experiment_by_name(config.registry.experiment)
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = 'nightly-{first['run_id']}'")
    assert runs[0].data.params["tables.products"] == str(versions["products"])
    assert runs[0].data.metrics["embed_images.embedded"] == embedded["embedded"]
    assert runs[0].data.metrics["price"] == pytest.approx(first["cpu_s"] / 3600 / config.capacity.node_cores * 2.0)
    status = show_status(config)
    assert first["run_id"] in status and first["release_id"] in status and "published" in status


def test_a_failed_run_is_recorded_and_told(
    tmp_path: Path, spark: object, capsys: pytest.CaptureFixture[str], hook: "Hook"
) -> None:
    config = Config.load(write_conf(tmp_path, {"feed": {"uri": str(tmp_path / "no.jsonl")}, "nightly": {"webhook": hook.url}}))
    with pytest.raises(JobError, match="does not exist"):
        nightly.run(config)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["outcome"], summary["exit_code"]) == ("failed", 1) and "does not exist" in summary["message"]
    assert hook.told == [summary]
    [row] = read_rows(Tables(config.store.tables))
    assert (row["run_id"], row["outcome"], row["message"]) == (summary["run_id"], "failed", summary["message"])
    assert table_version(Tables(config.store.tables), "products") is None


def test_nobody_waits_for_a_webhook(tmp_path: Path) -> None:
    """A closed port, and one that takes the call and never answers."""
    quick = config_of(tmp_path, webhook=f"http://127.0.0.1:{free_port()}/x", webhook_timeout_s=1.0)
    notify(quick, Run("nightly"))
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:
        start = time.monotonic()
        notify(config_of(tmp_path, webhook=f"http://127.0.0.1:{silent.server_port}/", webhook_timeout_s=0.5), Run("nightly"))
        assert time.monotonic() - start < 2
    with pytest.raises(ConfigError, match=r"nightly\.webhook"):
        config_of(tmp_path, webhook="ftp://x")
    with pytest.raises(ConfigError, match="at most a third of lease_s"):
        config_of(tmp_path, heartbeat_s=60)


SPIN = "while __import__('time').process_time() < {}: pass\n"


def test_cpu_seconds_count_what_runs_below() -> None:
    before = cpu_times()
    subprocess.run([sys.executable, "-c", SPIN.format(0.5)], check=True)
    assert 0.4 < cpu_seconds_since(before) < 20


def test_cpu_seconds_from_before_do_not_count() -> None:
    """A child that had spent much ends while another spends little; and one that nobody waits for, as Ray's workers end."""
    command = [sys.executable, "-c", SPIN.format(1.5) + "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = cpu_times()
        process.communicate("\n")
    subprocess.run([sys.executable, "-c", SPIN.format(0.5)], check=True)
    assert 0.4 < cpu_seconds_since(before) < 1.4
    before = cpu_times() | {-1: (10**6, 10**6)}
    start = time.process_time()
    while time.process_time() < start + 0.3:
        pass
    assert 0.2 < cpu_seconds_since(before) < 1.4


class Hook:
    """A server that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/nightly"


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()
