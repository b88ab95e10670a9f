"""Work in progress of one run: what is to do, what is done, and the marker that says all of it is.

    <folder>/plan.json          which run this is: exact versions in, commit number out
             pending.parquet    its rows, by key, before anything is done
             rows/part-*.parquet  finished rows, one file a block, written by the driver alone under another name and renamed:
                                a file that exists is whole, and its rows are never done again
             SUCCESS            every pending row is in rows/

The parts are the checkpoint. Ray Data's own (`DataContext.checkpoint_config`) is not used: it needs a plan that starts with
a file read, and Ray 2.60's file listing takes a whole CPU, its resume filter another one and 1 GiB, so that two CPUs with two
actor pools on them never start. Finished rows are small (pixels never leave the actors), so one writer is enough and workers
need no common disk. A kill costs the blocks in flight.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from jobs.config import JobError


@dataclass(frozen=True)
class Plan:
    """One run. The same plan is carried through however often the run is killed."""

    run_id: str
    tables: str  # where it will be committed
    images_version: int
    bundle_digest: str
    commit_number: int  # transaction number of its Delta commits
    num_pending: int


@dataclass(frozen=True)
class Stage:
    """The staged work of one plan, keyed by column `key`."""

    folder: Path
    plan: Plan
    key: str

    @classmethod
    def create(cls, root: Path, plan: Plan, pending: pa.Table, key: str) -> "Stage":
        """A new stage under `root`; appears whole or not at all."""
        assert pending.num_rows == plan.num_pending
        folder, fresh = root / plan.run_id, root / f".new-{plan.run_id}"
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh / "rows").mkdir(parents=True)
        pq.write_table(pending, fresh / "pending.parquet")
        (fresh / "plan.json").write_text(json.dumps(asdict(plan), indent=1))
        fresh.rename(folder)
        return cls(folder, plan, key)

    @classmethod
    def unfinished(cls, root: Path, key: str) -> "list[Stage]":
        """Stages that a killed run left under `root`."""
        plans = sorted(root.glob("[!.]*/plan.json"))
        return [cls(path.parent, Plan(**json.loads(path.read_text())), key) for path in plans]

    @property
    def rows(self) -> pyarrow.dataset.Dataset:
        """The finished rows."""
        return pyarrow.dataset.dataset(sorted((self.folder / "rows").glob("part-*.parquet")), format="parquet")

    @property
    def complete(self) -> bool:
        return (self.folder / "SUCCESS").exists()

    def remaining(self) -> pa.Table:
        """The pending rows that are not done, in their order."""
        pending = pq.read_table(self.folder / "pending.parquet")
        if not any((self.folder / "rows").glob("part-*.parquet")):
            return pending
        done = self.rows.to_table(columns=[self.key])[self.key]
        return pending.filter(pc.invert(pc.is_in(pending[self.key], value_set=done)))

    def add(self, rows: pa.Table) -> None:
        """Finished rows, durable when this returns."""
        part = self.folder / "rows" / f"part-{uuid.uuid4().hex}.parquet"
        partial = part.with_name(f".{part.name}")
        pq.write_table(rows, partial)
        durable_rename(partial, part)

    def finish(self) -> None:
        """Checks that every pending row is there once, and sets the marker. Raises JobError."""
        done = self.rows.to_table(columns=[self.key])[self.key]
        distinct = pc.count_distinct(done).as_py()
        if not len(done) == distinct == self.plan.num_pending:
            raise JobError(
                f"{self.folder}: {self.plan.num_pending} rows in, {len(done)} out ({distinct} distinct); "
                "nothing is committed: remove the folder and run again"
            )
        marker = self.folder / ".SUCCESS"
        marker.touch()
        durable_rename(marker, self.folder / "SUCCESS")

    def remove(self) -> None:
        """Forgets the stage at once, then deletes it."""
        gone = self.folder.with_name(f".gone-{self.folder.name}")
        self.folder.rename(gone)
        shutil.rmtree(gone)


def durable_rename(source: Path, target: Path) -> None:
    """Renames a written file so that after a power cut the new name holds the whole file."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.rename(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def only_run(root: Path, job: str) -> Iterator[None]:
    """Holds the stage folder: two runs of one job at a time would do the work twice. A dead run's hold ends with it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"{job} is running already on {root}: wait for it, or end it; a killed run can be resumed") from error
        for leftover in root.glob(".[ng]*-*"):  # .new-*, .gone-*: a run that was killed while it came or went
            shutil.rmtree(leftover)
        yield
