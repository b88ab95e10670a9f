"""One run at a time that changes the store as a whole: a lease, kept alive by its holder while it runs.

    <store.root>/nightly.lease    who runs, since when, how far: JSON, touched every `nightly.heartbeat_s`

A run that was killed leaves its lease behind. On the machine where it ran it is taken over at once, since its process is gone;
from elsewhere when nobody has touched it for `nightly.lease_s`. Its age is a difference of two times that the file system gave,
so that clocks that differ do no harm.
"""

import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from jobs.config import JobError, NightlyConfig
from jobs.runs import Run
from serve.index.manifest import write_durably
from serve.settings import StoreConfig

BUSY_EXIT_CODE = 4


@dataclass(frozen=True)
class Holder:
    """Who runs, as the lease says it."""

    job: str
    run_id: str
    host: str
    pid: int
    started_at: str  # UTC, ISO 8601
    machine: str  # boot and process space: where `pid` means something
    born: str  # when the process started, in ticks after boot: the same number may be another process later
    stage: str = ""  # that it is in

    @property
    def alive(self) -> bool | None:
        """Whether its process runs; none where this cannot be seen from here."""
        return None if self.machine != this_machine() else born(self.pid) == self.born

    def words(self) -> str:
        """For messages."""
        place = f"on {self.host}, pid {self.pid}, in {self.stage or 'its first stage'}"
        return f"{self.job} {self.run_id} since {self.started_at} {place}"


class Lease:
    """The lease as its holder has it."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path, self.holder = path, holder

    def held(self) -> bool:
        """Whether it is still ours: another run takes it over where this one was stopped for longer than `nightly.lease_s`."""
        found = read_holder(self.path)
        return found is not None and found.run_id == self.holder.run_id

    def enter(self, stage: str) -> None:
        """Says which stage begins. Raises JobError where the lease was lost meanwhile."""
        if not self.held():
            raise JobError(f"{self.path}: taken over by another run while this one stood still; nothing more is done here")
        self.holder = replace(self.holder, stage=stage)
        write_holder(self.path, self.holder)


@contextmanager
def hold_lease(store: StoreConfig, config: NightlyConfig, run: Run) -> Iterator[tuple[Lease, Holder | None]]:
    """The lease, and the killed run that it was taken over from. Raises JobError with exit code 4 while another run goes on."""
    path = lease_path(store)
    holder = Holder(
        run.name,
        run.run_id,
        socket.gethostname(),
        os.getpid(),
        run.started_at.isoformat(timespec="seconds"),
        this_machine(),
        born(os.getpid()) or "",
    )
    store.root.mkdir(parents=True, exist_ok=True)
    with alone(path):
        before = read_holder(path)
        if before is not None and is_running(path, before, config.lease_s):
            raise JobError(f"another run is on: {before.words()}; wait for it, or end it: a killed run goes on", BUSY_EXIT_CODE)
        write_holder(path, holder)
    lease, ended = Lease(path, holder), threading.Event()
    threading.Thread(target=keep_alive, args=(lease, config.heartbeat_s, ended), daemon=True).start()
    try:
        yield lease, before
    finally:
        ended.set()
        with alone(path):
            if lease.held():
                path.unlink()


def lease_path(store: StoreConfig) -> Path:
    """Where the lease lies."""
    return store.root / "nightly.lease"


def is_running(path: Path, holder: Holder, lease_s: float) -> bool:
    """Whether the holder may still be at work."""
    return age_s(path) < lease_s if holder.alive is None else holder.alive


def age_s(path: Path) -> float:
    """Seconds since the lease was touched, by the clock of its file system."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.now")
    probe.touch()
    age = probe.stat().st_mtime - path.stat().st_mtime
    probe.unlink()
    return age


def keep_alive(lease: Lease, every_s: float, ended: threading.Event) -> None:
    """Touches the lease until `ended`, or until it is another's."""
    while not ended.wait(every_s) and lease.held():
        with suppress(FileNotFoundError):  # dropped this moment
            os.utime(lease.path)


def read_holder(path: Path) -> Holder | None:
    """What the lease says; None where there is none."""
    return Holder(**json.loads(path.read_text())) if path.is_file() else None


def write_holder(path: Path, holder: Holder) -> None:
    """The lease, in one step."""
    write_durably(path, json.dumps(asdict(holder)).encode())


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """No other process takes or drops the lease meanwhile."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def this_machine() -> str:
    """The same for all processes that can see each other's ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def born(pid: int) -> str | None:
    """Ticks after boot at which process `pid` started; None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]
