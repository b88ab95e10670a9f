"""Rows appended to a Delta table so that they last: all that wait go into one commit, and are answered when it is on the disk."""

import asyncio
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from serve.api.problems import Problem
from serve.index.manifest import sync_folder

log = logging.getLogger(__name__)

SOON_S = 2.0  # rows that nobody waits for are written with the next ones that somebody does, or after this time
MAX_WAITING = 20_000  # of those rows; a disk that takes none must not fill the memory


def append_durably(table: DeltaTable, path: str, rows: pa.Table) -> None:
    """One commit on `table`, which lies at `path`; back when it is on the disk, whoever is killed then."""
    before = table.version()
    write_deltalake(table, rows, mode="append")
    if "://" not in path:  # object stores are durable by themselves
        for version in range(before + 1, table.version() + 1):  # ours, and those of others that came in between
            sync_commit(Path(path), version)


def sync_commit(table: Path, version: int) -> None:
    """What version `version` of a table on this disk added, and its log entry, survive a loss of power."""
    log_folder = table / "_delta_log"
    entry = log_folder / f"{version:020d}.json"
    added = [json.loads(line).get("add") for line in entry.read_text().splitlines()]
    for path in (*(table / add["path"] for add in added if add), entry):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(table)
    sync_folder(log_folder)


class Records:
    """Rows of one table that this replica appends. Nothing is read back, and no row depends on another."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.table: DeltaTable | None = None
        self.rows: list[dict[str, Any]] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.writing: asyncio.Task[None] | None = None
        self.lock = threading.Lock()

    async def add(self, rows: list[dict[str, Any]]) -> None:
        """Back when `rows` are durable. Raises Problem 503 when nothing could be written."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.rows += rows
        self.waiting.append(future)
        if self.writing is None or self.writing.done():
            self.writing = asyncio.create_task(self._write_waiting())
        await asyncio.shield(future)

    def add_soon(self, rows: list[dict[str, Any]]) -> None:
        """Nobody waits for `rows`; they are dropped where too many wait already."""
        if len(self.rows) + len(rows) > MAX_WAITING:
            log.warning("event=records_dropped rows=%d", len(rows))
            return
        if not self.rows:
            asyncio.get_running_loop().call_later(SOON_S, self._flush_soon)
        self.rows += rows

    def close(self) -> None:
        """Writes what is left. Called from a thread."""
        rows, self.rows = self.rows, []
        if rows:
            self._write(rows)

    def _flush_soon(self) -> None:
        if self.rows and (self.writing is None or self.writing.done()):
            self.writing = asyncio.create_task(self._write_waiting())

    async def _write_waiting(self) -> None:
        while self.rows or self.waiting:
            rows, self.rows = self.rows, []
            waiting, self.waiting = self.waiting, []
            stored = not rows or await asyncio.to_thread(self._write, rows)
            for future in waiting:
                if stored:
                    future.set_result(None)
                else:
                    future.set_exception(
                        Problem(503, "not_stored", "could not be stored; try again", headers={"Retry-After": "1"})
                    )

    def _write(self, rows: list[dict[str, Any]]) -> bool:
        with self.lock:
            try:
                if self.table is None:
                    DeltaTable.create(self.path, self.schema, mode="ignore")
                    self.table = DeltaTable(self.path)
                else:
                    self.table.update_incremental()
                append_durably(self.table, self.path, pa.Table.from_pylist(rows, schema=self.schema))
                return True
            except (OSError, DeltaError) as error:
                log.error("event=not_stored error=%s", type(error).__name__)
                return False
