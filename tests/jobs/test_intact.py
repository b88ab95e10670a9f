"""Damaged Delta tables: each damage is named, with its cure, before anything is built on it."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from jobs import nightly
from jobs.config import Config, JobError
from jobs.intact import whole_version
from jobs.run_records import read_rows
from jobs.tables import Tables
from tests.damage import DAMAGES, LOG, entry
from tests.parts import BuiltStore, write_conf

WRITTEN = ("listings", "products", "images", "features", "fetches")  # by Spark, by delta-rs


def table_of(tables: Tables, num_versions: int = 4) -> Path:
    """A table of so many commits."""
    for number in range(num_versions):
        write_deltalake(tables.path("fetches"), pa.table({"image_uri": [f"{number}-{i}" for i in range(50)]}), mode="append")
    return Path(tables.path("fetches"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    tables = Tables(str(tmp_path))
    table = table_of(tables)
    assert whole_version(tables, "fetches") == 3 and whole_version(tables, "features") is None
    act, words = DAMAGES[damage]
    act(table)
    with pytest.raises(JobError, match=words) as found:
        whole_version(tables, "fetches")
    assert str(table) in str(found.value) and "\n" not in str(found.value)
    assert re.search("from a backup|has all of it without", str(found.value))


@pytest.mark.parametrize("damage", ["truncated entry", "entry cut after a line", "empty entry", "missing data file"])
def test_the_way_back_that_is_told_leads_back(tmp_path: Path, damage: str) -> None:
    tables = Tables(str(tmp_path))
    table = table_of(tables)
    last_file = {*DeltaTable(table).file_uris()} - {*DeltaTable(table, version=2).file_uris()}
    if damage == "missing data file":
        Path(last_file.pop().removeprefix("file://")).unlink()
    else:
        DAMAGES[damage][0](table)
    with pytest.raises(JobError) as found:
        whole_version(tables, "fetches")
    told = re.search(r"go back to version (\d+)", str(found.value))
    assert told is not None, found.value
    for version in range(int(told[1]) + 1, 5):
        entry(table, version).unlink(missing_ok=True)
    assert whole_version(tables, "fetches") == int(told[1]) == (3 if damage == "empty entry" else 2)


@pytest.mark.parametrize(("name", "words"), [("products", "with --full"), ("inserts", "what came over HTTP since is lost")])
def test_what_is_given_up_is_said(tmp_path: Path, name: str, words: str) -> None:
    tables = Tables(str(tmp_path))
    table_of(tables).rename(tables.path(name))
    DAMAGES["truncated entry"][0](Path(tables.path(name)))
    with pytest.raises(JobError, match=words):
        whole_version(tables, name)


def test_a_checkpoint_that_is_not_needed_can_go(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    table = table_of(tables)
    DAMAGES["cut checkpoint"][0](table)
    with pytest.raises(JobError, match="remove that checkpoint and _last_checkpoint, and run again"):
        whole_version(tables, "fetches")
    next((table / LOG).glob("*.checkpoint.parquet")).unlink()
    (table / LOG / "_last_checkpoint").unlink()
    assert whole_version(tables, "fetches") == 3


def test_a_log_that_was_trimmed_is_whole(tmp_path: Path) -> None:
    """Entries before a checkpoint may go (jobs.retention.trim_log), those after it not."""
    tables = Tables(str(tmp_path))
    table = table_of(tables, 2)
    DeltaTable(table).create_checkpoint()
    table_of(tables, 2)
    entry(table, 0).unlink()
    assert whole_version(tables, "fetches") == 3
    entry(table, 2).unlink()
    with pytest.raises(JobError, match="entry 2 of its log is missing"):
        whole_version(tables, "fetches")


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_night_begins_on_a_damaged_table(built_store: BuiltStore, tmp_path: Path, damage: str) -> None:
    """Tables that Spark wrote, and those of delta-rs; a copy of them for each damage."""
    act, words = DAMAGES[damage]
    for name in WRITTEN:
        copy = tmp_path / name
        shutil.copytree(built_store.config.store.tables, copy)
        act(copy / name)
        config = Config.load(write_conf(tmp_path, {"store": {"root": str(tmp_path / "store"), "tables": str(copy)}}))
        with pytest.raises(JobError, match=words):
            nightly.check_tables(config)


def test_a_refused_night_changes_nothing(built_store: BuiltStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "tables"
    shutil.copytree(built_store.config.store.tables, copy)
    DAMAGES["truncated entry"][0](copy / "features")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    sections = {"store": {"root": str(tmp_path / "store"), "tables": str(copy)}, "feed": {"uri": str(built_store.feed)}}
    config = Config.load(write_conf(tmp_path, sections))
    with pytest.raises(JobError, match=r"features: entry \d+ of its log"):
        nightly.run(config)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["outcome"], summary["exit_code"]) == ("failed", 1)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and "runs" not in path.parts}
    assert after == {path: data for path, data in before.items() if "runs" not in path.parts}
    assert not (tmp_path / "store" / "releases").exists()
    row = read_rows(Tables(config.store.tables))[-1]
    assert row["outcome"] == "failed" and row["message"] == summary["message"] and "features" not in dict(row["versions"])
