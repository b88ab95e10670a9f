"""Whether a Delta table is whole, looked at before a run builds on it: its log, its checkpoints, its data files.

Readers of Delta notice such damage late, and some of it never: an empty entry is a version without news to them, and an entry
that lost its last lines is one with fewer files. Damage is named with its cure; nothing is repaired in secret.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from jobs.config import JobError
from jobs.tables import Tables

LOG, HINT = "_delta_log", "_last_checkpoint"
DIGITS = 20  # of the version that a file of the log begins with
OF_CLIENTS = ("inserts", "feedback", "judgments")  # what they hold is in no feed
VERSIONS_BACK = 50  # so far back the newest whole version is looked for
# What delta-rs counts of the files in its commits: the actions that each count is of. Spark keeps a count of the whole table.
COUNTED = {
    "num_added_files": ("add", "cdc"),
    "num_target_files_added": ("add", "cdc"),
    "num_removed_files": ("remove",),
    "num_target_files_removed": ("remove",),
}


@dataclass(frozen=True)
class Log:
    """The files of a table's log, by version."""

    filesystem: fsspec.AbstractFileSystem
    entries: Mapping[int, str]
    checkpoints: Mapping[int, tuple[str, ...]]
    sums: Mapping[int, str]  # Spark's count of the table at a version
    hint: str | None  # which checkpoint to read first

    @classmethod
    def of(cls, filesystem: fsspec.AbstractFileSystem, folder: str) -> "Log":
        """The log in `folder`."""
        entries, checkpoints, sums, hint = {}, defaultdict(list), {}, None
        for path in sorted(filesystem.ls(folder, detail=False)):
            name = path.rsplit("/", 1)[-1]
            if name == HINT:
                hint = path
            elif name[:DIGITS].isdigit() and name[DIGITS:] == ".json":
                entries[int(name[:DIGITS])] = path
            elif name[:DIGITS].isdigit() and name[DIGITS:] == ".crc":
                sums[int(name[:DIGITS])] = path
            elif name[:DIGITS].isdigit() and name[DIGITS:].startswith(".checkpoint."):
                checkpoints[int(name[:DIGITS])].append(path)
        return cls(filesystem, entries, {version: tuple(paths) for version, paths in checkpoints.items()}, sums, hint)

    def before_checkpoint(self, version: int) -> "Log":
        """As if that checkpoint and later ones had not been written."""
        return replace(self, checkpoints={n: paths for n, paths in self.checkpoints.items() if n < version}, hint=None)


def whole_version(tables: Tables, name: str) -> int | None:
    """The newest version of table `name`; None where it was never written. Raises JobError."""
    path = tables.path(name)
    filesystem, root = fsspec.core.url_to_fs(path)
    if not filesystem.exists(root):
        return None
    folder = f"{root}/{LOG}"
    log = Log.of(filesystem, folder) if filesystem.exists(folder) else Log(filesystem, {}, {}, {}, None)
    newest = max([*log.entries, *log.checkpoints], default=None)
    sizes = data_files(filesystem, root)  # after the log: what it names was there before
    if newest is None:
        if sizes:
            raise JobError(f"{path}: {len(sizes)} data files and no log; put {LOG} back from a backup; {begin_anew(name)}")
        return None
    fault = log_fault(log, newest) or files_fault(log, path, newest, sizes)
    if fault is None:
        return newest
    raise JobError(f"{path}: {fault}; {cure(log, path, name, newest, sizes)}")


def cure(log: Log, path: str, name: str, newest: int, sizes: Mapping[str, int]) -> str:
    """What to do about a damaged table."""
    base = base_of(log, newest)
    if base is not None and log_fault(log.before_checkpoint(base), newest) is None:
        return f"the log has all of it without: remove that checkpoint and {HINT}, and run again"
    for version in range(newest - 1, max(newest - VERSIONS_BACK, 0) - 1, -1):
        if log_fault(log.before_checkpoint(version + 1), version) is None and files_fault(log, path, version, sizes) is None:
            return (
                f"put it back from a backup; or go back to version {version}, the newest whole one: remove the files of {LOG} "
                f"after {version}, hidden ones and {HINT} too, {then(name)}"
            )
    return f"put it back from a backup; {begin_anew(name)}"


def begin_anew(name: str) -> str:
    """The last resort."""
    return f"or remove the table's folder, {then(name)}"


def then(name: str) -> str:
    """What follows when rows of a table are given up."""
    if name in OF_CLIENTS:
        return "and run again: what came over HTTP since is lost"
    return "and run `python -m jobs.nightly` with --full: it makes what was lost again"


def base_of(log: Log, version: int) -> int | None:
    """The checkpoint that reading `version` begins with; None = the first entry."""
    return max((found for found in log.checkpoints if found <= version), default=None)


def log_fault(log: Log, version: int) -> str | None:
    """What is wrong with the part of the log that gives `version`."""
    base = base_of(log, version)
    if log.hint is not None and (fault := hint_fault(log)) is not None:
        return fault
    for path in log.checkpoints[base] if base is not None else ():
        if (fault := checkpoint_fault(log, path)) is not None:
            return f"checkpoint {base} {fault}"
    for number in range(0 if base is None else base, version + 1):
        if number in log.entries:
            if (fault := entry_fault(log.filesystem.cat_file(log.entries[number]))) is not None:
                return f"entry {number} of its log {fault}"
        elif number != base:
            return f"entry {number} of its log is missing"
    return None


def hint_fault(log: Log) -> str | None:
    """What is wrong with the file that names the newest checkpoint."""
    try:
        version = int(json.loads(log.filesystem.cat_file(log.hint))["version"])
    except (ValueError, KeyError, TypeError):
        return f"{HINT} can't be read"
    written = f"{str(log.hint).removesuffix(HINT)}{version:0{DIGITS}}.checkpoint.*"
    if version in log.checkpoints or log.filesystem.glob(written):  # serving may have written it since the log was listed
        return None
    return f"checkpoint {version}, which {HINT} names, is missing"


def checkpoint_fault(log: Log, path: str) -> str | None:
    """What is wrong with a checkpoint's file."""
    if not path.endswith(".parquet"):
        return None  # of the second kind, as JSON: reading the table tells
    try:
        with log.filesystem.open(path) as file:
            for _ in pq.ParquetFile(file).iter_batches():
                pass  # reading it is the test
    except (OSError, pa.ArrowException):
        return "can't be read: it is cut off or damaged"
    return None


def entry_fault(data: bytes) -> str | None:
    """What is wrong with an entry of the log: lines of JSON, an action each, one of which tells of the commit."""
    if not data.strip():
        return "is empty"
    counts: defaultdict[str, int] = defaultdict(int)
    told: dict[str, Any] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            (action, value), *_ = json.loads(line).items()
        except (ValueError, AttributeError):
            return f"is cut off or damaged in line {number}"
        counts[action] += 1
        told = value if action == "commitInfo" else told
    if not told:
        return "is cut off: nothing tells of its commit"
    for name, value in (told.get("operationMetrics") or {}).items():
        if name in COUNTED and str(value).isdigit() and int(value) > (named := sum(counts[action] for action in COUNTED[name])):
            return f"is cut off: {named} of {value} files ({COUNTED[name][0]}) are named"
    return None


def data_files(filesystem: fsspec.AbstractFileSystem, root: str) -> dict[str, int]:
    """Bytes of every file of a table but its log's, by its path below `root`."""
    found = filesystem.find(root, detail=True)
    below = {path.removeprefix(root).lstrip("/"): int(info["size"]) for path, info in found.items()}
    return {path: size for path, size in below.items() if not path.startswith("_")}


def files_fault(log: Log, path: str, version: int, sizes: Mapping[str, int]) -> str | None:
    """What is wrong with the data files of `version`; `sizes`: of those that are there."""
    try:
        added = pa.table(DeltaTable(path, version=version).get_add_actions(flatten=True))
    except (DeltaError, OSError, ValueError) as error:
        return f"version {version} can't be read: {' '.join(str(error).split())[:200]}"
    if (counted := files_counted(log, version)) is not None and counted != added.num_rows:
        return f"the log of version {version} is cut off: {added.num_rows} of {counted} data files are named"
    lost = [
        (name, size)
        for name, size in zip(added["path"].to_pylist(), added["size_bytes"].to_pylist(), strict=True)
        if "://" not in name and sizes.get(name) != size
    ]
    if not lost:
        return None
    (name, size), found = lost[0], sizes.get(lost[0][0])
    which = f"{len(lost)} of {added.num_rows} data files are missing or cut off, such as " if len(lost) > 1 else "data file "
    return f"{which}{name} {'is missing' if found is None else f'has {found} of {size} bytes'}"


def files_counted(log: Log, version: int) -> int | None:
    """Data files that the table had when Spark wrote `version`; None where that is not known."""
    if version not in log.sums:
        return None
    try:
        return int(json.loads(log.filesystem.cat_file(log.sums[version]))["numFiles"])
    except (ValueError, KeyError, TypeError):
        return None  # a count that cannot be read is not the table's fault
