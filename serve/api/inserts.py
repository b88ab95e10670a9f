"""The Delta table `inserts`: appended durably, and read on from where it was read last."""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from deltalake import DeltaTable

from serve.api.durable import append_durably
from serve.index.inserts import INSERTS, INSERTS_TABLE, Row
from serve.index.manifest import LOG_IS_KEPT, Manifest
from serve.settings import StoreConfig

RACE_US = 60_000_000  # no row is committed so long after a later one: its writer had read what was there just before


class Inserts:
    """The rows that a release does not hold yet. Calls from several threads are safe.

    Files say which rows those are: all but the release's version of the table names. Files that were written anew since
    (jobs.forget_product, jobs.clean_store) hold old rows, too; those are told by their time (those of the
    last minute before the release are given once more).
    """

    def __init__(self, store: StoreConfig, manifest: Manifest) -> None:
        self.path = f"{store.tables.rstrip('/')}/{INSERTS_TABLE}"
        self.folded = manifest.tables.get(INSERTS_TABLE)  # this version and all before are in the release
        self.table: DeltaTable | None = None
        self.read: set[str] = set()
        self.since = 0  # older rows of other files are in the release
        self.version = -1
        self.lock = threading.Lock()

    def read_new(self) -> list[Row]:
        """Rows that this object has not given yet; at first all that came after the release. Order says nothing: `at` does."""
        with self.lock:
            if self.table is None and not DeltaTable.is_deltatable(self.path):
                return []
            table = self._newest()
            if table.version() == self.version:
                return []
            new = sorted(set(table.file_uris()) - self.read)
            rows = [row for uri in new for row in read_file(uri, self.since).to_pylist()]
            self.read |= set(new)
            self.version = table.version()
            return rows

    def _newest(self) -> DeltaTable:
        """The table as it is now: opened once, then only its new log entries are read."""
        if self.table is None:
            self.table = DeltaTable(self.path)
            if self.folded is not None:
                folded = DeltaTable(self.path, version=self.folded)
                self.read = set(folded.file_uris())
                self.since = last_at(folded) - RACE_US
        else:
            self.table.update_incremental()
        return self.table

    def append(self, rows: list[Row]) -> None:
        """One commit; back when it is on the disk, whoever is killed then."""
        with self.lock:
            if self.table is None:
                DeltaTable.create(self.path, INSERTS, mode="ignore", configuration=LOG_IS_KEPT)
            append_durably(self._newest(), self.path, pa.Table.from_pylist(rows, schema=INSERTS))


def last_at(table: DeltaTable) -> int:
    """The newest `at` among its rows, by its log; 0 where there are none."""
    statistics = pa.table(table.get_add_actions(flatten=True))
    return (pc.max(statistics["max.at"]).as_py() or 0) if "max.at" in statistics.column_names else 0


def read_file(uri: str, since: int) -> pa.Table:
    """The rows of a data file of the table, wherever it lies, that are no older than `since`."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).absolute().as_uri())
    return pq.read_table(path, filesystem=filesystem, schema=INSERTS, filters=pc.field("at") >= since)
