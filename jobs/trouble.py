"""Troubles that are not the job's: a full disk, one that cannot be written, a registry that is away. Each is told in one line.

They reach a job through every library it uses, as an exception of that library's own. Anything else keeps its traceback.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded", "File too large")
READ_ONLY = ("Read-only file system", "readonly database", "unable to open database file")
SHARED_MEMORY = Path("/dev/shm")


def explained(error: BaseException, store_root: Path, registry_uri: str) -> str | None:
    """What it is and what to do; None where it is none of these."""
    for cause in causes(error):
        text = str(cause)
        if any(words in text for words in FULL):
            return f"no space left ({room(store_root)}): make room and run again; what is finished is kept"
        if any(words in text for words in READ_ONLY):
            return f"can't be written: {first_line(cause)}; see store.root={store_root} and registry.uri={registry_uri}"
        if isinstance(cause, PermissionError):
            return f"no permission: {first_line(cause)}; change that, and run again"
        if type(cause).__module__.startswith("mlflow") and text.startswith("API request to"):
            return f"registry.uri={registry_uri} does not answer: start it, and run again; what is finished is kept"
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what led to it, as Python chains them and as Ray carries them from one process to another."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__, getattr(found, "cause", None)]


def first_line(error: BaseException) -> str:
    """Without the stack that other languages add."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def room(store_root: Path) -> str:
    """Free space of the disks that jobs write to."""
    folder = store_root.absolute()
    while not folder.exists():
        folder = folder.parent
    places = {"store.root": folder, "temporary files": Path(os.environ.get("TMPDIR") or tempfile.gettempdir())}
    if SHARED_MEMORY.is_dir():
        places["shared memory"] = SHARED_MEMORY
    return ", ".join(f"{name} {path}: {shutil.disk_usage(path).free / 1e6:,.0f} MB free" for name, path in places.items())
