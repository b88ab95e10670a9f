"""`make demo`: the whole path once, on a generated catalog, ending with a search answered over HTTP and a report.

Reads   nothing but conf: the catalog is rendered, the shipped bundle embeds it
Writes  render.folder (catalog), store (tables, release, registry), demo.folder (report page with pictures)
Engine  each step is the command a user would type, as a process of its own

    python -m jobs.run_demo --conf conf/local.yaml
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests
import yaml

from jobs.config import Config, JobError, run_job
from jobs.runs import Run, configure_logging

log = logging.getLogger("jobs.run_demo")

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60
QUICK = ("train_looks.folds=2", "train_looks.epochs=6", "train_looks.threads=1")  # nets this small only wait for a second thread


def run(config: Config) -> None:
    """Renders, builds, serves, searches, reports; stops what it started."""
    demo = Run("demo")
    conf = config.demo.folder / "conf.yaml"  # the settings as read, so that each step sees the same ones
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    url = f"http://127.0.0.1:{config.demo.port}"
    queries = config.render.folder / "queries.jsonl"
    with demo.stage("render_catalog"):
        command("jobs.render_catalog", conf)
    with demo.stage("nightly"):
        files = {"links": "outfits.jsonl", "judged_by": "partners.jsonl"}
        looks = [f"train_looks.{key}=[{config.render.folder / name}]" for key, name in files.items()]
        command(
            "jobs.nightly", conf, f"feed.uri={config.render.folder / 'feed.jsonl'}", f"evaluate.queries={queries}", *looks, *QUICK
        )
    with demo.stage("search"), serving(conf, url, config.demo.port):
        search = (f"evaluate.url={url}", f"evaluate.queries={queries}", f"evaluate.report={config.demo.folder}")
        command("jobs.evaluate_search", conf, *search)
    figures = json.loads((config.demo.folder / "report.json").read_text())
    sys.stdout.write(
        f"""
{figures["queries"]} street scenes searched over HTTP, {figures["pairs"]} products to find:
  Recall@1 {figures["recall_at_1"]:.3f}   Recall@5 {figures["recall_at_5"]:.3f}   Recall@10 {figures["recall_at_10"]:.3f}
  boxes found {figures["boxes_found_frac"]:.3f}   median answer {figures["p50_ms"]:.0f} ms   release {figures["release"]}

The report with pictures   {(config.demo.folder / "report.html").resolve().as_uri()}
The generated catalog      {config.render.folder}
Tables, releases, MLflow   {config.store.root}
The settings of this run   {conf}

Next:
  make serve                                          the search page at http://127.0.0.1:{config.serve.port}
  .venv/bin/python -m jobs.nightly --conf conf/local.yaml --set feed.uri=YOUR_FEED.jsonl
  .venv/bin/mlflow ui --backend-store-uri {config.registry.uri}
"""
    )


def command(module: str, conf: Path, *settings: str) -> None:
    """Runs `python -m module --conf ... --set ...`; its failure is ours."""
    arguments = [sys.executable, "-m", module, "--conf", str(conf)]
    for setting in settings:
        arguments += ["--set", setting]
    code = subprocess.run(arguments, check=False).returncode
    if code != 0:
        raise JobError(f"{' '.join(arguments[1:])} ended with exit code {code}; its last lines say why", exit_code=code)


@contextlib.contextmanager
def serving(conf: Path, url: str, port: int) -> Iterator[None]:
    """The endpoint, up and ready; stopped afterwards with everything it started."""
    arguments = [sys.executable, "-m", "serve", "--conf", str(conf), "--port", str(port)]
    process = subprocess.Popen(arguments, start_new_session=True)
    try:
        wait_until_ready(process, url)
        yield
    finally:
        process.terminate()  # not SIGINT, which a shell has its background jobs ignore
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            log.warning("endpoint=%s was killed: it did not stop within %s s", url, STOP_TIMEOUT_S)


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Returns when /readyz says 200."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise JobError(f"the endpoint ended with exit code {process.returncode}; its last lines say why")
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise JobError(f"the endpoint at {url} was not ready within {START_TIMEOUT_S} s")


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
