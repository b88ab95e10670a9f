"""Commits that happen once, and tables that are checked."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from jobs.config import JobError
from jobs.raydata.delta import append, committed, ensure_table, pinned_version, upsert
from jobs.raydata.pending import rows_of
from jobs.tables import CHECKS, FEATURES, FETCHES, Tables, read_table, table_version

RUN = "a_job"


def fetches(**reasons: str | None) -> pa.Table:
    """Rows of FETCHES: uri=reason."""
    some = {"bundle_digest": "d", "run_id": "r", "image_id": None, "detail": None, "num_bytes": 1}
    rows = [
        {"image_uri": uri, "status": "rejected" if reason else "embedded", "reason": reason, **some}
        for uri, reason in reasons.items()
    ]
    return pa.Table.from_pylist(rows, schema=FETCHES)


def test_append_then_upsert(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    assert committed(tables, "fetches", RUN) == 0
    ensure_table(tables, "fetches", FETCHES)
    ensure_table(tables, "fetches", FETCHES)
    assert (table_version(tables, "fetches"), committed(tables, "fetches", RUN)) == (0, 0)
    assert append(tables, "fetches", FETCHES, fetches(a=None, b="timeout", c="corrupt").to_batches(), RUN, 1) == 3
    assert committed(tables, "fetches", RUN) == 1 and committed(tables, "fetches", "another") == 0
    assert upsert(tables, "fetches", fetches(b=None, d=None), ("image_uri", "bundle_digest"), RUN, 2) == 1
    stored = read_table(tables, "fetches", ["image_uri", "reason"]).to_pylist()
    assert {row["image_uri"]: row["reason"] for row in stored} == {"a": None, "b": None, "c": "corrupt", "d": None}
    assert len(stored) == 4 and committed(tables, "fetches", RUN) == 2 and table_version(tables, "fetches") == 2


@pytest.mark.parametrize("write", ["append", "upsert"])
def test_a_table_of_earlier_code_gets_the_new_columns(tmp_path: Path, write: str) -> None:
    tables, new = Tables(str(tmp_path)), ["etag", "last_modified", "fetched_at"]
    write_deltalake(tables.path("fetches"), fetches(a="timeout", b=None).drop_columns(new))
    assert rows_of(tables, "fetches", FETCHES, ["image_uri", "etag"], "d")["etag"].null_count == 2
    rows = fetches(c=None).set_column(FETCHES.names.index("etag"), FETCHES.field("etag"), pa.array(["e"]))
    if write == "append":
        append(tables, "fetches", FETCHES, rows.to_batches(), RUN, 1)
    else:
        upsert(tables, "fetches", rows, ("image_uri", "bundle_digest"), RUN, 1)
    stored = rows_of(tables, "fetches", FETCHES, FETCHES.names, "d")
    assert {row["image_uri"]: row["etag"] for row in stored.to_pylist()} == {"a": None, "b": None, "c": "e"}
    assert table_version(tables, "fetches") == 1 and DeltaTable(tables.path("fetches")).protocol().min_reader_version == 1


def test_tables_stay_readable_for_everyone(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    for name, schema in (("features", FEATURES), ("fetches", FETCHES), ("checks", CHECKS)):
        ensure_table(tables, name, schema)
        protocol = DeltaTable(tables.path(name)).protocol()
        assert protocol.min_reader_version == 1 and not protocol.reader_features
        assert read_table(tables, name).schema.equals(schema)


def test_an_empty_commit_is_not_taken_for_a_version(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    with pytest.raises(JobError, match=r"run jobs\.some_job first"):
        pinned_version(tables, "fetches", "jobs.some_job")
    ensure_table(tables, "fetches", FETCHES)
    append(tables, "fetches", FETCHES, fetches(a=None).to_batches(), RUN, 1)
    assert pinned_version(tables, "fetches", "jobs.some_job") == 1
    (Path(tables.path("fetches")) / "_delta_log" / f"{2:020}.json").touch()
    with pytest.raises(JobError, match="entry 2 of its log is empty"):
        pinned_version(tables, "fetches", "jobs.some_job")


def test_a_version_is_pinned(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    ensure_table(tables, "fetches", FETCHES)
    append(tables, "fetches", FETCHES, fetches(a=None).to_batches(), RUN, 1)
    append(tables, "fetches", FETCHES, fetches(b=None).to_batches(), RUN, 2)
    assert [read_table(tables, "fetches", version=v).num_rows for v in (0, 1, 2)] == [0, 1, 2]
    assert read_table(tables, "fetches", ["reason", "image_uri"]).column_names == ["reason", "image_uri"]
