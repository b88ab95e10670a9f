"""Delta versions in, idempotent Delta commits out, for jobs that write by delta-rs.

A commit carries a transaction number. delta-rs records it and enforces nothing (it commits the same number twice), so
`committed` is asked first, and there is one writer at a time (staging.only_run). After each commit the table is read again:
an empty commit file would be taken for a valid one.
"""

import logging
from collections.abc import Iterable

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from jobs.config import JobError
from jobs.intact import whole_version
from jobs.tables import Tables, table_version
from serve.index.manifest import LOG_IS_KEPT

log = logging.getLogger(__name__)


def pinned_version(tables: Tables, name: str, written_by: str) -> int:
    """The newest version of table `name`, every file of it looked at. Raises JobError."""
    version = whole_version(tables, name)
    if version is None:
        raise JobError(f"{tables.path(name)}: no such table; run {written_by} first")
    return version


def ensure_table(tables: Tables, name: str, schema: pa.Schema) -> None:
    """Creates an empty table `name` where there is none."""
    DeltaTable.create(tables.path(name), schema, mode="ignore", configuration=LOG_IS_KEPT)


def committed(tables: Tables, name: str, app_id: str) -> int:
    """Highest transaction number of `app_id` in table `name`; 0 where there is none."""
    if table_version(tables, name) is None:
        return 0
    return DeltaTable(tables.path(name)).transaction_version(app_id) or 0


def append(tables: Tables, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], app_id: str, number: int) -> int:
    """Appends `batches` in one commit of `name`; returns the number of rows. Raises JobError where they do not arrive.

    Columns that the table lacks, because an earlier version of this code made it, are added to it; so does `upsert`.
    """
    before = DeltaTable(tables.path(name)).count()
    num_rows = 0

    def counted() -> Iterable[pa.RecordBatch]:
        nonlocal num_rows
        for batch in batches:
            num_rows += batch.num_rows
            yield batch

    reader = pa.RecordBatchReader.from_batches(schema, counted())
    properties = transaction(app_id, number)
    write_deltalake(tables.path(name), reader, mode="append", schema_mode="merge", commit_properties=properties)
    check_count(tables, name, before + num_rows)
    return num_rows


def upsert(tables: Tables, name: str, rows: pa.Table, keys: tuple[str, ...], app_id: str, number: int) -> int:
    """Puts `rows` in place of those with equal `keys`, the others beside them, in one commit; returns how many are new."""
    table = DeltaTable(tables.path(name))
    before = table.count()
    merge = table.merge(
        rows,
        " AND ".join(f"old.{key} = new.{key}" for key in keys),
        source_alias="new",
        target_alias="old",
        merge_schema=True,
        commit_properties=transaction(app_id, number),
    )
    done = merge.when_matched_update_all().when_not_matched_insert_all().execute()
    num_new = int(done["num_target_rows_inserted"])
    check_count(tables, name, before + num_new)
    return num_new


def transaction(app_id: str, number: int) -> CommitProperties:
    """The commit's mark."""
    return CommitProperties(app_transactions=[Transaction(app_id, number)])


def check_count(tables: Tables, name: str, expected: int) -> None:
    """Reads the table anew. Raises JobError where its row count is not the expected one."""
    found = DeltaTable(tables.path(name))
    if found.count() != expected:
        raise JobError(
            f"{tables.path(name)}: version {found.version()} holds {found.count()} rows after the commit, expected {expected}; "
            f"restore the version before it and run again"
        )
    log.info("table=%s version=%d rows=%d", name, found.version(), expected)
