"""The whole path in order: from a feed to a published release. Only what changed is done; a killed run goes on where it was.

Reads   feed.uri and everything the jobs read
Writes  every table, a release, the registry; the last line of output is one JSON summary
Engine  Spark, Ray Data, FAISS, MLflow, as the jobs do

    python -m jobs.nightly --conf conf/local.yaml --set feed.uri=PATH
    python -m jobs.nightly --conf conf/local.yaml --set feed.uri=PATH --plan     what would run; runs nothing
"""

import logging
import sys
from collections.abc import Callable

from jobs import build_shards, curate_catalog, embed_images, evaluate_index, group_duplicates, publish_release, train_index
from jobs.config import Config, run_job
from jobs.raydata.session import stop_ray
from jobs.runs import Run, configure_logging, counts_of
from jobs.spark.session import stop_spark

log = logging.getLogger("jobs.nightly")

STAGES: tuple[tuple[str, Callable[[Config], object]], ...] = (
    ("curate_catalog", curate_catalog.run),
    ("embed_images", embed_images.run),
    ("group_duplicates", group_duplicates.run),
    ("train_index", train_index.run),
    ("build_shards", build_shards.run),
    ("evaluate_index", evaluate_index.run),
    ("publish_release", publish_release.run),
)


def run(config: Config, plan: bool = False) -> Run:
    """Every stage, or with `plan` only a look at what each would do. A failing stage ends the run with its JobError."""
    night = Run("nightly")
    if plan:
        show_plan(config)
        return night
    for name, stage_run in STAGES:
        with night.stage(name) as stage:
            stage.counts.update(counts_of(stage_run(config)))
    sys.stdout.write(night.summary() + "\n")
    return night


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
