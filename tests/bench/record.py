"""Benchmark figures as JSON beside the machine and the versions they were measured with."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def cpu_model() -> str:
    """As the kernel calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def growth(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent of the fit seconds ~ size ** growth: 1 is linear."""
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 3)


def record(name: str, figures: dict[str, Any], packages: tuple[str, ...], out: Path | None = None) -> Path:
    """Writes `figures` to `out`, or to results/<name>.json, and returns where. `load` is what else the machine was doing."""
    path = out or RESULTS / f"{name}.json"
    machine = {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    versions = {"python": platform.python_version()} | {package: version(package) for package in packages}
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"bench": name, "date": date, "machine": machine, "versions": versions, "figures": figures}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
