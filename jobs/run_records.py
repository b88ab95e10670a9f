"""Nightly runs as rows of the table `runs` and as runs in MLflow, as `--status` shows them, and as a webhook hears of them."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import pyarrow as pa
import requests
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from jobs.building import CODE_VERSION
from jobs.config import Config, JobError
from jobs.experiment import log_run
from jobs.inserts_read import inserts_read
from jobs.raydata.delta import ensure_table
from jobs.run_lease import Holder, Lease, hold_lease, is_running, lease_path, read_holder
from jobs.runs import Run
from jobs.tables import RUNS, TABLE_NAMES, Tables, table_version
from jobs.trouble import explained

log = logging.getLogger("jobs.runs")

NIGHTLY = "nightly"
PUBLISHED, UNCHANGED, KILLED = "published", "unchanged", "killed"
SHOWN_CHARS = 100  # of a message
MAX_PARAM_CHARS = 6_000  # MLflow takes no longer ones
Row = dict[str, Any]


def record(config: Config, run: Run, host: str, pid: int) -> None:
    """The finished run as a row, and in MLflow. What cannot be recorded is logged: how the run ended stays as it is."""
    try:
        settings = json.dumps(config.told(), sort_keys=True)
        row = row_of(config, run, host, pid, settings)
        append_row(Tables(config.store.tables), row)
        log_in_mlflow(config, run, row, settings)
    except Exception as error:  # a damaged table, a full disk, a registry that is away: they have no class in common
        told = explained(error, config.store.root, config.registry.uri)
        log.error("run=%s was not recorded: %s", run.run_id, told, exc_info=told is None)


def row_of(config: Config, run: Run, host: str, pid: int, settings: str) -> Row:
    """The run as a row of RUNS."""
    tables, versions = Tables(config.store.tables), {}
    for name in TABLE_NAMES:
        with suppress(DeltaError):  # a damaged one has none; why the run failed is told elsewhere
            versions[name] = table_version(tables, name)
    versions = {name: version for name, version in versions.items() if version is not None}
    if (folded := inserts_read(config.store)) is not None:
        versions["inserts"] = folded
    return {
        "run_id": run.run_id,
        "outcome": run.outcome,
        "exit_code": run.exit_code,
        "message": run.message,
        "started_at": run.started_at,
        "seconds": run.seconds,
        "cpu_s": run.cpu_s,
        "host": host,
        "pid": pid,
        "code_version": CODE_VERSION,
        "feed": config.feed.uri,
        "release_id": run.counts("publish_release").get("release_id") or run.counts("train_index").get("release_id", ""),
        "versions": list(versions.items()),
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
        "stages": [{"name": s.name, "seconds": s.seconds, "cpu_s": s.cpu_s, "counts": json.dumps(s.counts)} for s in run.stages],
    }


@contextmanager
def only_run_of_store(config: Config, run: Run) -> Iterator[Lease]:
    """Holds the store's lease; a nightly run that was killed with it is recorded first. Raises JobError where a run is on."""
    with hold_lease(config.store, config.nightly, run) as (lease, before):
        if before is not None and before.job == NIGHTLY:
            record_killed(config, before)
        yield lease


def record_killed(config: Config, holder: Holder) -> None:
    """The row of a run that left its lease behind, unless it had come to write it itself."""
    found = Tables(config.store.tables)
    if any(row["run_id"] == holder.run_id for row in read_rows(found)):
        return
    log.warning("run=%s was killed in stage=%s; the next one goes on from there", holder.run_id, holder.stage)
    killed = Run(NIGHTLY, holder.run_id, datetime.fromisoformat(holder.started_at))
    killed.end(KILLED, 1, f"in {holder.stage or 'its first stage'}")
    record(config, killed, holder.host, holder.pid)


def versions_as_of(config: Config, moment: datetime) -> dict[str, int]:
    """Versions of the tables that the last good run before `moment` left. Raises JobError where there was none."""
    good = [row for row in read_rows(Tables(config.store.tables)) if row["outcome"] in (PUBLISHED, UNCHANGED)]
    before = [row for row in good if row["started_at"] <= moment]
    if not before:
        since = f"the first one was {good[0]['run_id']}" if good else "there was none at all"
        raise JobError(f"nightly.as_of={moment.isoformat()}: no good run before it; {since}")
    log.info("as_of=%s run=%s", moment.isoformat(), before[-1]["run_id"])
    return dict(before[-1]["versions"])


def append_row(tables: Tables, row: Row) -> None:
    """One commit."""
    ensure_table(tables, "runs", RUNS)
    write_deltalake(tables.path("runs"), pa.Table.from_pylist([row], schema=RUNS), mode="append")


def read_rows(tables: Tables) -> list[Row]:
    """Every recorded run, oldest first."""
    if table_version(tables, "runs") is None:
        return []
    rows: list[Row] = DeltaTable(tables.path("runs")).to_pyarrow_table().sort_by("run_id").to_pylist()
    return rows


def log_in_mlflow(config: Config, run: Run, row: Row, settings: str) -> None:
    """A run of the experiment: versions in, seconds and numbers of each stage."""
    params = {f"tables.{name}": version for name, version in row["versions"]} | {"settings": settings[:MAX_PARAM_CHARS]}
    params |= {name: row[name] for name in ("outcome", "exit_code", "message", "host", "feed", "release_id", "code_version")}
    metrics = [("seconds", run.seconds, 0), ("cpu_s", run.cpu_s, 0), ("price", price(config, run.cpu_s), 0)]
    for stage in run.stages:
        numbers = {"seconds": stage.seconds, "cpu_s": stage.cpu_s} | stage.counts
        metrics += [(f"{stage.name}.{key}", float(n), 0) for key, n in numbers.items() if isinstance(n, int | float)]
    log_run(config.registry, f"{run.name}-{run.run_id}", params, metrics)


def price(config: Config, cpu_s: float) -> float:
    """What so many CPU seconds cost, in the currency of section capacity; of the machine that the run was started on."""
    return cpu_s / 3600 / config.capacity.node_cores * config.capacity.node_price_per_hour


def last_rate(config: Config) -> float | None:
    """Images a second that embed_images reached last; none where it never had anything to do."""
    for row in reversed(read_rows(Tables(config.store.tables))):
        for stage in row["stages"]:
            if rate := json.loads(stage["counts"]).get("images_per_s"):
                return float(rate)
    return None


def show_status(config: Config) -> str:
    """The run that is on, and the last `nightly.status_runs` as a table, newest last."""
    path = lease_path(config.store)
    holder = read_holder(path)
    if holder is None:
        now = "no run is on"
    elif is_running(path, holder, config.nightly.lease_s):
        now = f"running: {holder.words()}"
    else:
        now = f"killed: {holder.words()}; the next run goes on from there"
    rows = read_rows(Tables(config.store.tables))[-config.nightly.status_runs :]
    measured = ["seconds", "cpu s", "price", "products", "rejects", "embedded", "shards built"]
    head = ["run", "outcome", "exit", *measured, "release", "why"]
    return "\n".join([now, *columns([head, *(cells(config, row) for row in rows)])]) + "\n"


def cells(config: Config, row: Row) -> list[str]:
    """A run as a line of the table."""
    counts = {stage["name"]: json.loads(stage["counts"]) for stage in row["stages"]}
    curated, embedded, built = (counts.get(name, {}) for name in ("curate_catalog", "embed_images", "build_shards"))
    numbers = [curated.get("products"), curated.get("rejects"), embedded.get("embedded"), built.get("built")]
    cost = [f"{row['seconds']:.0f}", f"{row['cpu_s']:.0f}", f"{price(config, row['cpu_s']):.2g}"]
    shown = [*cost, *("-" if number is None else str(number) for number in numbers)]
    return [row["run_id"], row["outcome"], str(row["exit_code"]), *shown, row["release_id"] or "-", row["message"][:SHOWN_CHARS]]


def columns(lines: list[list[str]]) -> list[str]:
    """Cells in columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def notify(config: Config, run: Run) -> None:
    """Sends the summary to `nightly.webhook`; back after `nightly.webhook_timeout_s` at the latest, whatever becomes of it."""
    url = config.nightly.webhook
    if url is None:
        return

    def post() -> None:
        try:
            body = run.summary().encode()
            headers = {"content-type": "application/json"}
            requests.post(url, data=body, headers=headers, timeout=config.nightly.webhook_timeout_s).raise_for_status()
        except requests.RequestException as error:
            log.warning("webhook=%s was not told: %s", run.run_id, type(error).__name__)

    sending = threading.Thread(target=post, daemon=True)
    sending.start()
    sending.join(config.nightly.webhook_timeout_s)
