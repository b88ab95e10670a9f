"""The whole path in order: from a feed to a published release. Only what changed is done; a killed run goes on where it was.

Reads   feed.uri and everything the jobs read
Writes  every table, a release, the registry; the last line of output is one JSON summary
Engine  Spark, Ray Data, FAISS, MLflow, as the jobs do

    python -m jobs.nightly --conf conf/local.yaml --set feed.uri=PATH
    python -m jobs.nightly --conf conf/local.yaml --set feed.uri=PATH --plan     what would run; runs nothing
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from jobs import (
    build_shards,
    curate_catalog,
    embed_images,
    evaluate_index,
    group_duplicates,
    publish_release,
    train_index,
    train_looks,
)
from jobs.config import Config, run_job
from jobs.raydata.session import stop_ray
from jobs.runs import Run, configure_logging, counts_of, pairs
from jobs.spark.session import stop_spark
from serve.index.manifest import write_durably

STAGES: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("curate_catalog", curate_catalog.run),
    ("embed_images", embed_images.run),
    ("group_duplicates", group_duplicates.run),
    ("train_looks", train_looks.run),
    ("train_index", train_index.run),
    ("build_shards", build_shards.run),
    ("evaluate_index", evaluate_index.run),
    ("publish_release", publish_release.run),
)


def run(config: Config, plan: bool = False) -> None:
    """Every stage, or with `plan` only a look at what each would do. A failing stage ends the run with its JobError."""
    if plan:
        sys.stdout.write(show_plan(config))
        return
    night = Run("nightly")
    for name, stage_run in STAGES:
        with night.stage(name) as stage:
            stage.counts.update(counts_of(stage_run(config)))
    summary = night.summary()
    write_durably(summary_path(config), summary.encode())
    sys.stdout.write(summary + "\n")


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
    lines = {
        "curate_catalog": "rows to change: " + pairs({name: num for name, num in vars(feed).items() if name != "new_uris"}),
        "embed_images": embedding,
    }
    rest = "nothing changed" if idle else "runs; an unchanged input makes no new release"
    return "".join(f"{name:<18}{lines.get(name, rest)}\n" for name, _ in STAGES)


def summary_path(config: Config) -> Path:
    """Where the summary of the newest finished run is kept."""
    return config.store.root / "last_nightly.json"


def last_rate(config: Config) -> float | None:
    """Images a second that embed_images reached in the newest run; none when it had nothing to do or never ran."""
    if not summary_path(config).is_file():
        return None
    stages = json.loads(summary_path(config).read_text())["stages"]
    return next((stage["counts"]["images_per_s"] for stage in stages if stage["name"] == "embed_images"), None) or None


def main() -> None:
    """Command line."""
    configure_logging()
    try:
        run_job(__doc__ or "", run, flags={"plan": "shows what would run, how many rows, at what cost, and runs nothing"})
    finally:
        stop_ray()
        stop_spark()


if __name__ == "__main__":
    main()
