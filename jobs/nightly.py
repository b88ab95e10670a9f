"""The whole path in order: from a feed to a published release. Only what changed is done; a killed run goes on where it was.

Reads   feed.uri and everything the jobs read
Writes  every table, a release, the registry; a row of `runs`; the last line of output is one JSON summary
Engine  Spark, Ray Data, FAISS, MLflow, as the jobs do

    python -m jobs.nightly --conf conf/local.yaml --set feed.uri=PATH
    python -m jobs.nightly --conf conf/local.yaml --set feed.uri=PATH --plan     what would run; runs nothing
    python -m jobs.nightly --conf conf/local.yaml --set feed.uri=PATH --full     trains and builds everything again
    python -m jobs.nightly --conf conf/local.yaml --set feed.uri=PATH --set 'nightly.next_bundle={path: NEW}'   changes the model
    python -m jobs.nightly --conf conf/local.yaml --set nightly.as_of=2026-11-20T00:00Z   the release of that day again
    python -m jobs.nightly --conf conf/local.yaml --status                       who runs now, and the last runs

Exit status: 0 published, or nothing changed; 1 failed; 2 wrong settings; 3 a gate refused; 4 another run is on.
"""

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jobs import (
    build_shards,
    catalog_doctor,
    curate_catalog,
    embed_images,
    evaluate_index,
    group_duplicates,
    publish_release,
    train_index,
    train_looks,
)
from jobs.config import WRONG_SETTINGS_EXIT_CODE, Config, JobError, run_job
from jobs.failpoint import failpoint
from jobs.gate import GATE_EXIT_CODE
from jobs.intact import whole_version
from jobs.raydata.session import stop_ray
from jobs.reuse import next_generation
from jobs.run_lease import Lease
from jobs.run_records import NIGHTLY, PUBLISHED, UNCHANGED, last_rate, notify, only_run_of_store, record, show_status
from jobs.runs import Run, configure_logging, counts_of, pairs
from jobs.spark.session import stop_spark
from jobs.tables import TABLE_NAMES, Tables
from jobs.trouble import explained
from serve.index.manifest import ReleaseError, read_manifest
from serve.registry import CHAMPION, NoChampionError, champion, registered
from serve.settings import ConfigError
from serve.vision.bundle import BundleError, assemble_bundle, bundle_digest

log = logging.getLogger("jobs.nightly")

STAGES: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("curate_catalog", curate_catalog.run),
    ("embed_images", embed_images.run),
    ("group_duplicates", group_duplicates.run),
    ("catalog_doctor", catalog_doctor.run),
    ("train_looks", train_looks.run),
    ("train_index", train_index.run),
    ("build_shards", build_shards.run),
    ("evaluate_index", evaluate_index.run),
    ("publish_release", publish_release.run),
)
OF_TODAY = (
    "curate_catalog",
    "embed_images",
    "group_duplicates",
    "catalog_doctor",
    "train_looks",
)  # stages that nightly.as_of leaves out
MAX_TOLD_CHARS = 500  # of an exception that nobody foresaw: some carry the stack of another language
BUILT_ON = tuple(name for name in TABLE_NAMES if name not in ("runs", "feedback"))  # tables that a release may follow from
OF_NEXT_BUNDLE = ("train_looks", "train_index", "build_shards", "evaluate_index", "publish_release")


def run(config: Config, plan: bool = False, status: bool = False, full: bool = False, force: bool = False) -> None:
    """Every stage, or a look: `plan` at what each would do, `status` at the last runs. Raises the JobError of a failing stage.

    `force`: the gate's refusal is only logged. `full`: no template and no shard of an earlier release is used again; a full run
    that was killed goes on without it.
    """
    if not (status or config.feed.uri or config.nightly.as_of):
        raise ConfigError("feed.uri is not set; name the feed with --set feed.uri=PATH")
    if plan or status:
        sys.stdout.write(show_status(config) if status else show_plan(config))
        return
    night = Run(NIGHTLY)
    try:
        with only_run_of_store(config, night) as lease:
            if full:
                next_generation(config.store)
            carry_out(config, night, lease, force)
    except Exception as error:
        if not night.outcome:  # it did not begin
            outcome, exit_code = ("busy", error.exit_code) if isinstance(error, JobError) else ("failed", 1)
            night.end(outcome, exit_code, told_of(error, config))
        raise
    finally:
        sys.stdout.write(night.summary() + "\n")


def carry_out(config: Config, night: Run, lease: Lease, force: bool) -> None:
    """The stages in order; however they end, the run is recorded, and who should hear of a failure is told."""
    night.end("failed", 1, "stopped")
    try:
        stages = dict(STAGES) | {"evaluate_index": partial(evaluate_index.run, force=force)}
        if config.nightly.as_of is not None:
            stages = {name: stage_run for name, stage_run in stages.items() if name not in OF_TODAY}
        check_tables(config)
        check_registry(config)
        config, coming = configs_of(config)
        for name, stage_run in stages.items():
            carry_stage(night, lease, name, partial(stage_run, config))
        night.end(PUBLISHED if night.counts("publish_release")["changed"] else UNCHANGED)
        if coming is not None and config.nightly.as_of is None:
            change_bundle(coming, night, lease, stages)
    except JobError as error:
        refused = error.exit_code == GATE_EXIT_CODE
        night.end("refused" if refused else "failed", error.exit_code, str(error))
        raise
    except Exception as error:
        night.end("failed", 1, told_of(error, config))
        raise
    finally:
        record(config, night, socket.gethostname(), os.getpid())
        if night.exit_code:
            notify(config, night)


def told_of(error: Exception, config: Config) -> str:
    """What the record says of it."""
    if isinstance(error, JobError):
        return str(error)
    told = explained(error, config.store.root, config.registry.uri)
    return told or f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_TOLD_CHARS]}"


def check_tables(config: Config) -> None:
    """Nothing is built on a damaged table. Raises JobError."""
    for name in BUILT_ON:
        whole_version(Tables(config.store.tables), name)


def check_registry(config: Config) -> None:
    """Nothing is begun that cannot be published. Raises JobError."""
    try:
        registered(config.registry, config.store, CHAMPION)
    except ReleaseError as error:
        raise JobError(str(error)) from error


def carry_stage(night: Run, lease: Lease, name: str, stage_run: Callable[[], object]) -> dict[str, Any]:
    """One stage, recorded as `name`; its counts."""
    lease.enter(name)
    failpoint(f"{name}:before")
    with night.stage(name) as stage:
        stage.counts.update(counts_of(stage_run()))
    failpoint(f"{name}:after")
    return stage.counts


def configs_of(config: Config) -> tuple[Config, Config | None]:
    """The settings of tonight's catalog, and those of the bundle that is to take over; none where there is none or it has."""
    if config.nightly.next_bundle is None:
        return config, None
    coming = config.model_copy(update={"bundle": config.nightly.next_bundle})
    try:
        digest = bundle_digest(assemble_bundle(coming.bundle, config.store.bundles, config.registry.uri))
        served = read_manifest(champion(config.registry, config.store)).bundle.digest
    except NoChampionError:
        return config, coming
    except (BundleError, ReleaseError) as error:
        raise JobError(f"nightly.next_bundle: {error}") from error
    if served != digest:
        return config, coming
    log.info("nightly.next_bundle has taken over; write it into section bundle, and set nightly.next_bundle=null")
    return coming, None


def change_bundle(coming: Config, night: Run, lease: Lease, stages: Mapping[str, Callable[[Config], object]]) -> None:
    """Embeds tonight's share with the bundle that is to take over; once nothing waits, its release passes the gate or not.

    Tonight's catalog is published with the old bundle by then, whatever comes of it.
    """
    counts = carry_stage(night, lease, "next:embed_images", partial(embed_images.run, coming, coming.nightly.next_images))
    if counts["waiting"]:
        return
    for name in OF_NEXT_BUNDLE:
        counts = carry_stage(night, lease, f"next:{name}", partial(stages[name], coming))
    if counts["changed"]:
        night.end(PUBLISHED)


def show_plan(config: Config) -> str:
    """What a run would change, stage by stage, and about how long embedding would take; nothing is changed."""
    feed = curate_catalog.plan(config)
    waiting = embed_images.count_pending(config)
    num_images = feed.new_uris + waiting
    idle = not num_images and not any(vars(feed).values())
    if not num_images:
        embedding = "no new image"
    elif rate := last_rate(config):
        embedding = f"{num_images} images, about {num_images / rate:.0f} s at the last run's {rate:.1f} images/s"
    else:
        embedding = f"{num_images} images; how long is known after the first run"
    if coming := configs_of(config)[1]:
        embedding += f"; nightly.next_bundle waits for {embed_images.count_pending(coming)} more"
    lines = {
        "curate_catalog": "rows to change: " + pairs({name: num for name, num in vars(feed).items() if name != "new_uris"}),
        "embed_images": embedding,
    }
    rest = "nothing changed" if idle else "runs; an unchanged input makes no new release"
    return "".join(f"{name:<18}{lines.get(name, rest)}\n" for name, _ in STAGES)


def stop(signum: int, frame: object) -> None:
    """A scheduler's SIGTERM ends the run as Ctrl-C does: recorded, and without the lease."""
    raise SystemExit(128 + signum)


def main() -> None:
    """Command line."""
    configure_logging()
    signal.signal(signal.SIGTERM, stop)
    flags = {
        "plan": "shows what would run, how many rows, at what cost, and runs nothing",
        "full": "trains and builds everything again; photos that were embedded stay embedded",
        "force": "publishes although the gate refuses; what it found is logged",
        "status": "shows who runs now and the last runs, and runs nothing",
    }
    try:
        run_job(__doc__ or "", run, flags=flags)
    except SystemExit as end:
        if end.code == WRONG_SETTINGS_EXIT_CODE:  # no run came of it; schedulers get their line all the same
            summary = {"run": "nightly", "outcome": "failed", "exit_code": end.code, "message": "wrong settings"}
            sys.stdout.write(json.dumps(summary) + "\n")
        raise
    finally:
        stop_ray()
        stop_spark()


if __name__ == "__main__":
    main()
