"""A run: its log lines, its stages with seconds and counts, its closing summary."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

log = logging.getLogger("jobs")


def configure_logging() -> None:
    """One structured line an event on stderr; libraries only speak up from warnings on."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr, force=True
    )
    for name in ("jobs", "serve"):
        logging.getLogger(name).setLevel(logging.INFO)


@dataclass
class Stage:
    """One step of a run."""

    name: str
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """The stages of one run, in order."""

    name: str
    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Times a step; whatever is put into `.counts` (a mapping or a dataclass's fields) is logged with it."""
        stage = Stage(name)
        log.info("run=%s stage=%s started", self.name, name)
        start = time.perf_counter()
        yield stage
        stage.seconds = round(time.perf_counter() - start, 1)
        self.stages.append(stage)
        log.info("run=%s stage=%s seconds=%.1f %s", self.name, name, stage.seconds, pairs(stage.counts))

    def summary(self) -> str:
        """One JSON line for schedulers."""
        return json.dumps(
            {
                "run": self.name,
                "seconds": round(sum(s.seconds for s in self.stages), 1),
                "stages": [asdict(s) for s in self.stages],
            }
        )


def counts_of(result: object) -> dict[str, Any]:
    """The fields of a job's result dataclass."""
    if not is_dataclass(result) or isinstance(result, type):
        raise TypeError(f"a job's run returns a dataclass of counts, not {type(result).__name__}")
    return asdict(result)


def pairs(counts: dict[str, Any]) -> str:
    """`key=value` pairs of a log line."""
    return " ".join(f"{key}={value}" for key, value in counts.items())
