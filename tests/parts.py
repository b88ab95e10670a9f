"""What several tests share: a store built by the whole path, an endpoint in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from jobs.config import Config
from serve.__main__ import free_ports

ROOT = Path(__file__).parent.parent

# Most of Spark's time on a few rows is the compiling of each query's code; interpreted, the same takes a quarter less.
SPARK = {
    "master": "local[2]",
    "shuffle_partitions": 2,
    "settings": {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"},
}


@dataclass(frozen=True)
class BuiltStore:
    """A store after one nightly run."""

    conf: Path
    config: Config
    feed: Path
    queries: Path


def write_conf(folder: Path, sections: dict[str, Any]) -> Path:
    """A settings file for a store of its own in `folder`; `sections` on top."""
    data: dict[str, Any] = {
        "store": {"root": str(folder / "store"), "tables": str(folder / "store" / "tables")},
        "registry": {"uri": f"sqlite:///{folder}/store/mlflow.db", "artifacts": str(folder / "store" / "mlruns")},
        "bundle": {"path": str(ROOT / "serve" / "bundles" / "generated-v1")},
        "gate": {"report": str(folder / "gate")},
        "doctor": {"report": str(folder / "doctor")},
        "spark": SPARK,
    }
    path = folder / "conf.yaml"
    path.write_text(yaml.safe_dump(data | sections))
    return path


def run_module(
    module: str, conf: Path, *settings: str, flags: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m module --conf conf --set ...` as a user types it, output kept."""
    command = [sys.executable, "-m", module, "--conf", str(conf), *flags]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, env=os.environ | environment
    )


def free_port() -> int:
    """A port nobody listens on at this moment."""
    return free_ports(1)[0]


class RegistryServer:
    """An MLflow server of its own that can go away and come back; `database`: none = one in `folder`."""

    def __init__(self, folder: Path, port: int, database: Path | None = None) -> None:
        self.uri, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        folder.mkdir(parents=True, exist_ok=True)
        places = ["--backend-store-uri", f"sqlite:///{database or folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
        self.command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *places]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Back when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(240):
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.uri}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.5)
        raise AssertionError("the registry was not ready within 2 minutes")

    def stop(self) -> None:
        """As a machine that loses its power."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> "RegistryServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def endpoint(conf: Path, *arguments: str) -> Iterator[str]:
    """The URL of `python -m serve` on a free port, ready; stopped afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "serve", "--conf", str(conf), "--port", str(port), *arguments]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        for _ in range(360):
            assert process.poll() is None, f"the endpoint ended with exit code {process.returncode}"
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            time.sleep(0.5)
        else:
            raise AssertionError("the endpoint was not ready within 3 minutes")
        yield url
    finally:
        process.terminate()  # not SIGINT, which a shell has its background jobs ignore
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
