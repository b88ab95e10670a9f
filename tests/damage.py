"""What can happen to the files of a Delta table: each of these harms one, as a broken disk or a careless copy does."""

from collections.abc import Callable
from pathlib import Path

from deltalake import DeltaTable

LOG = "_delta_log"


def entry(table: Path, version: int) -> Path:
    """An entry of the table's log."""
    return table / LOG / f"{version:020}.json"


def newest(table: Path) -> int:
    """The newest version, by the names of the log's files."""
    return max(int(path.stem) for path in (table / LOG).glob("*.json"))


def cut(path: Path, frac: float = 0.6) -> None:
    """Only its beginning is left."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * frac)])


def truncated_entry(table: Path) -> None:
    cut(entry(table, newest(table)))


def entry_cut_after_a_line(table: Path) -> None:
    path = entry(table, newest(table))
    path.write_bytes(path.read_bytes().splitlines()[0])


def empty_entry(table: Path) -> None:
    entry(table, newest(table) + 1).touch()


def missing_entry(table: Path) -> None:
    DeltaTable(table).alter.set_table_properties({"delta.checkpointInterval": "20"})  # or it might be the newest one
    entry(table, 1).unlink()


def missing_data_file(table: Path) -> None:
    data_file(table).unlink()


def cut_data_file(table: Path) -> None:
    cut(data_file(table))


def cut_checkpoint(table: Path) -> None:
    DeltaTable(table).create_checkpoint()
    cut(next((table / LOG).glob("*.checkpoint.parquet")))


def unreadable_hint(table: Path) -> None:
    DeltaTable(table).create_checkpoint()
    cut(table / LOG / "_last_checkpoint")


def missing_checkpoint(table: Path) -> None:
    DeltaTable(table).create_checkpoint()
    next((table / LOG).glob("*.checkpoint.parquet")).unlink()


def missing_log(table: Path) -> None:
    for path in (table / LOG).iterdir():
        if path.is_file():
            path.unlink()


def data_file(table: Path) -> Path:
    """One that the newest version names."""
    return Path(DeltaTable(table).file_uris()[0].removeprefix("file://"))


# What harms a table of two versions or more: how, and a word of what is said about it.
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated entry": (truncated_entry, r"entry \d+ of its log is cut off or damaged in line \d+"),
    "entry cut after a line": (entry_cut_after_a_line, "cut off"),
    "empty entry": (empty_entry, r"entry \d+ of its log is empty"),
    "missing entry": (missing_entry, "entry 1 of its log is missing"),
    "missing data file": (missing_data_file, r"data file.* missing"),
    "cut data file": (cut_data_file, r"(has \d+ of \d+ bytes|missing or cut off)"),
    "cut checkpoint": (cut_checkpoint, r"checkpoint \d+ can't be read.*the log has all of it without"),
    "unreadable hint": (unreadable_hint, "_last_checkpoint can't be read"),
    "missing checkpoint": (missing_checkpoint, r"checkpoint \d+, which _last_checkpoint names, is missing"),
    "missing log": (missing_log, "data files and no log"),
}
