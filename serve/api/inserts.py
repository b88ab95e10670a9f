"""The Delta table `inserts`: appended durably, and read on from where it was read last."""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from deltalake import DeltaTable

from serve.api.durable import append_durably
from serve.index.inserts import INSERTS, INSERTS_TABLE, Row
from serve.index.manifest import LOG_IS_KEPT, Manifest
from serve.settings import StoreConfig


class Inserts:
    """The rows that a release does not hold yet. Calls from several threads are safe."""

    def __init__(self, store: StoreConfig, manifest: Manifest) -> None:
        self.path = f"{store.tables.rstrip('/')}/{INSERTS_TABLE}"
        self.folded = manifest.tables.get(INSERTS_TABLE)  # this version and all before are in the release
        self.table: DeltaTable | None = None
        self.read: set[str] = set()
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
            rows = [row for uri in new for row in read_file(uri).to_pylist()]
            self.read |= set(new)
            self.version = table.version()
            return rows

    def _newest(self) -> DeltaTable:
        """The table as it is now: opened once, then only its new log entries are read."""
        if self.table is None:
            self.table = DeltaTable(self.path)
            if self.folded is not None:
                self.read = set(DeltaTable(self.path, version=self.folded).file_uris())
        else:
            self.table.update_incremental()
        return self.table

    def append(self, rows: list[Row]) -> None:
        """One commit; back when it is on the disk, whoever is killed then."""
        with self.lock:
            if self.table is None:
                DeltaTable.create(self.path, INSERTS, mode="ignore", configuration=LOG_IS_KEPT)
            append_durably(self._newest(), self.path, pa.Table.from_pylist(rows, schema=INSERTS))


def read_file(uri: str) -> pa.Table:
    """A data file of the table, wherever it lies."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).absolute().as_uri())
    return pq.read_table(path, filesystem=filesystem, schema=INSERTS)
