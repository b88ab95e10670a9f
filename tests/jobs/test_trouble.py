"""Troubles of the machine and of the registry, as every library tells of them, in one line of ours."""

import errno
import json
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import DeltaError
from mlflow.exceptions import MlflowException
from requests.exceptions import ConnectionError as NoConnection

from jobs import nightly
from jobs.config import Config, JobError
from jobs.run_records import read_rows
from jobs.tables import Tables
from jobs.trouble import explained
from serve.registry import CHAMPION, RegistryAwayError, registered
from tests.parts import BuiltStore, free_port, run_module, write_conf

AWAY = "registry.uri=sqlite:///x does not answer"


@pytest.mark.parametrize(
    "error, told",
    [
        (OSError(errno.ENOSPC, "No space left on device", "/store/x"), "no space left (store.root "),
        (DeltaError("Generic LocalFileSystem error: No space left on device (os error 28)"), "no space left (store.root "),
        (sqlite3.OperationalError("database or disk is full"), "no space left (store.root "),
        (
            OSError(errno.EROFS, "Read-only file system", "/store/x"),
            "can't be written: [Errno 30] Read-only",
        ),
        (sqlite3.OperationalError("attempt to write a readonly database"), "can't be written: "),
        (
            PermissionError(errno.EACCES, "Permission denied", "/store/x"),
            "no permission: [Errno 13] Permission denied",
        ),
        (MlflowException("API request to http://x failed with exception: Max retries exceeded"), AWAY),
        (NoConnection("refused by an endpoint, not by the registry"), None),
        (ValueError("something else"), None),
        (FileNotFoundError("gone"), None),
    ],
)
def test_told_in_one_line(tmp_path: Path, error: Exception, told: str | None) -> None:
    assert_told(error, tmp_path, told)
    try:
        raise RuntimeError("a task failed") from error
    except RuntimeError as wrapped:  # as libraries hand it on
        assert_told(wrapped, tmp_path, told)


def assert_told(error: Exception, tmp_path: Path, told: str | None) -> None:
    found = explained(error, tmp_path / "not" / "there", "sqlite:///x")
    assert found is None if told is None else found is not None and found.startswith(told) and "\n" not in found


def test_a_full_device_through_arrow(tmp_path: Path) -> None:
    """What the library itself raises, on the one device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OSError) as found, pa.OSFile("/dev/full", "wb") as sink:
        pq.write_table(pa.table({"x": list(range(100_000))}), sink)
    told = explained(found.value, tmp_path, "sqlite:///x")
    assert told is not None and f"store.root {tmp_path}: " in told and "MB free" in told


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a registry that nobody answers at, asked once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return f"http://127.0.0.1:{free_port()}"


def test_a_night_without_a_registry_is_not_begun(
    tmp_path: Path, built_store: BuiltStore, no_registry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {"registry": {"uri": no_registry}, "feed": {"uri": str(built_store.feed)}}
    config = Config.load(write_conf(tmp_path, sections))
    with pytest.raises(JobError, match=rf"registry\.uri={no_registry} does not answer \(no connection\): start it"):
        nightly.run(config)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["outcome"], summary["exit_code"], summary["stages"]) == ("failed", 1, [])
    [row] = read_rows(Tables(config.store.tables))
    assert row["outcome"] == "failed" and "does not answer" in row["message"]
    with pytest.raises(RegistryAwayError):
        registered(config.registry, config.store, CHAMPION)


def test_an_endpoint_without_a_registry_says_what_it_can_serve(built_store: BuiltStore, no_registry: str) -> None:
    found = registered(built_store.config.registry, built_store.config.store, CHAMPION)
    assert found is not None
    done = run_module("serve", built_store.conf, f"registry.uri={no_registry}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"--release ID serves a published one without it: {found.release_id}" in done.stderr


def test_a_night_without_a_feed_is_a_wrong_setting(tmp_path: Path) -> None:
    done = run_module("jobs.nightly", write_conf(tmp_path, {}))
    assert done.returncode == 2 and done.stderr == "error: feed.uri is not set; name the feed with --set feed.uri=PATH\n"
    assert json.loads(done.stdout)["exit_code"] == 2
