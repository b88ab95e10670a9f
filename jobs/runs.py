"""A run: its log lines, its stages with seconds and counts, how it ended, its closing summary."""

import json
import logging
import os
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("jobs")

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def configure_logging() -> None:
    """One structured line an event on stderr; libraries only speak up from warnings on."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr, force=True
    )
    for name in ("jobs", "serve"):
        logging.getLogger(name).setLevel(logging.INFO)


# Process: clock ticks of its own, and of its ended children that it waited for.
CpuTimes = dict[int, tuple[int, int]]


@dataclass
class Stage:
    """One step of a run."""

    name: str
    seconds: float = 0.0
    cpu_s: float = 0.0  # of this machine
    counts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """The stages of one run, in order, and how it ended."""

    name: str
    run_id: str = field(default_factory=lambda: new_run_id())
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    stages: list[Stage] = field(default_factory=list)
    outcome: str = ""
    exit_code: int = 0
    message: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Times a step; whatever is put into `.counts` (a mapping or a dataclass's fields) is logged with it."""
        stage = Stage(name)
        self.stages.append(stage)
        log.info("run=%s stage=%s started", self.name, name)
        start, cpu_before = time.perf_counter(), cpu_times()
        try:
            yield stage
        finally:
            stage.seconds = round(time.perf_counter() - start, 1)
            stage.cpu_s = round(cpu_seconds_since(cpu_before), 1)
        log.info("run=%s stage=%s seconds=%.1f cpu_s=%.1f %s", self.name, name, stage.seconds, stage.cpu_s, pairs(stage.counts))

    def end(self, outcome: str, exit_code: int = 0, message: str = "") -> None:
        """Says how the run ended."""
        self.outcome, self.exit_code, self.message = outcome, exit_code, message

    def counts(self, stage: str) -> dict[str, Any]:
        """Counts of a stage; none where it did not come to an end."""
        return next((found.counts for found in self.stages if found.name == stage), {})

    @property
    def seconds(self) -> float:
        return round(sum(stage.seconds for stage in self.stages), 1)

    @property
    def cpu_s(self) -> float:
        return round(sum(stage.cpu_s for stage in self.stages), 1)

    def summary(self) -> str:
        """One JSON line for schedulers."""
        told = {"run": self.name, "run_id": self.run_id, "outcome": self.outcome, "exit_code": self.exit_code}
        told |= {"message": self.message, "seconds": self.seconds, "cpu_s": self.cpu_s}
        return json.dumps(told | {"stages": [asdict(stage) for stage in self.stages]})


def new_run_id() -> str:
    """Sorts by time (UTC), and is never given twice."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def cpu_times() -> CpuTimes:
    """CPU of this process and of all below it on this machine: Spark's JVM, a Ray started for this run."""
    below: defaultdict[int, list[int]] = defaultdict(list)
    times: CpuTimes = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # from field 3 of proc(5) on
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        pid, (user, system, ended_user, ended_system) = int(path.parent.name), map(int, fields[11:15])
        below[int(fields[1])].append(pid)
        times[pid] = user + system, ended_user + ended_system
    found, waiting = {}, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        if pid in times:
            found[pid] = times[pid]
        waiting += below[pid]
    return found


def cpu_seconds_since(before: CpuTimes) -> float:
    """What was spent since, by those that are still there and by those that began and ended meanwhile, if they were waited for.

    A process of before that ended is in its parent's times with all that it ever spent, or nowhere: Ray's workers.
    """
    now = cpu_times()
    since = [(own - before.get(pid, (0, 0))[0], ended - before.get(pid, (0, 0))[1]) for pid, (own, ended) in now.items()]
    gone = sum(own + ended for pid, (own, ended) in before.items() if pid not in now)
    return (sum(own for own, _ in since) + max(sum(ended for _, ended in since) - gone, 0)) / TICKS_PER_S


def counts_of(result: object) -> dict[str, Any]:
    """The fields of a job's result dataclass."""
    if not is_dataclass(result) or isinstance(result, type):
        raise TypeError(f"a job's run returns a dataclass of counts, not {type(result).__name__}")
    return asdict(result)


def pairs(counts: dict[str, Any]) -> str:
    """`key=value` pairs of a log line."""
    return " ".join(f"{key}={value}" for key, value in counts.items())
