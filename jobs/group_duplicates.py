"""Groups near-duplicate photos: every pair of hashes within duplicates.max_distance bits, and what hangs together.

reads   features (whole images of the current bundle)
writes  duplicates: every image with at least one neighbour; unchanged when the groups are the same as before; store.root/
        duplicates_of.json: what it was made from, so that the same features are grouped once
engine  Spark

Photos flatter than duplicates.min_quality have no telling hash and stay out. How all pairs are found without comparing
all: jobs/spark/near_duplicates.py.

    python -m jobs.group_duplicates --conf conf/local.yaml
"""

import json
import logging
import time
from dataclasses import asdict, dataclass, replace

from pyspark.sql import functions as F

from jobs import tables
from jobs.config import Config, JobError, run_job
from jobs.failpoint import failpoint
from jobs.runs import configure_logging
from jobs.spark import delta, near_duplicates
from jobs.spark.session import spark_session
from serve.index.manifest import write_durably
from serve.vision.bundle import assemble_bundle, bundle_digest

log = logging.getLogger("jobs.group_duplicates")


@dataclass(frozen=True)
class DuplicatesResult:
    """Images with a telling hash, those with a near neighbour, their groups, and whether the table changed."""

    images: int
    grouped: int
    groups: int
    changed: bool


def run(config: Config) -> DuplicatesResult:
    """Brings the table `duplicates` to the features of the current bundle. Raises JobError when there are none."""
    return regroup(config, bundle_digest(assemble_bundle(config.bundle, config.store.bundles)))


def regroup(config: Config, digest: str) -> DuplicatesResult:
    """As `run`, for the bundle with this digest."""
    found, path = tables.Tables(config.store.tables), config.store.root / "duplicates_of.json"
    features = tables.table_state(found, "features")
    if features is None:
        raise JobError(f"no table at {found.path('features')}; run jobs.embed_images first")
    made_from = {"features": features, "bundle": digest, **config.duplicates.model_dump()}
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if kept.get("made_from") == made_from and kept["duplicates"] == tables.table_state(found, "duplicates"):
        log.info("nothing changed: features version %d is grouped", features[1])
        return DuplicatesResult(**kept["result"])
    result = group(config, digest, int(features[1]))
    failpoint("group:after_write")
    unchanged = asdict(replace(result, changed=False))
    said = {"made_from": made_from, "duplicates": tables.table_state(found, "duplicates"), "result": unchanged}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(said).encode())
    return result


def group(config: Config, digest: str, version: int) -> DuplicatesResult:
    """Groups the images of this version of `features`, and writes what changed."""
    spark = spark_session(config.spark, "group_duplicates")
    paths = tables.Tables(config.store.tables)
    start = time.perf_counter()
    features = delta.read(spark, paths.path("features"), version)
    images = near_duplicates.hashed(features, digest, config.duplicates.min_quality).persist()
    num_images = images.count()
    found = near_duplicates.groups(images, num_images, config.duplicates.max_distance).persist()
    spec = delta.TableSpec(
        paths.path("duplicates"),
        tables.DUPLICATES,
        ("image_id",),
        {"group_of_two_or_more": "group_size >= 2", "distance_in_radius": "nearest_distance BETWEEN 0 AND 31"},
    )
    num_changes = delta.write(spark, spec, found)
    counts = found.agg(F.count("*").alias("grouped"), F.count_distinct("group_id").alias("groups")).first()
    spark.catalog.clearCache()
    result = DuplicatesResult(num_images, counts["grouped"], counts["groups"], num_changes > 0)
    seconds = time.perf_counter() - start
    log.info("table=duplicates images=%d rows=%d groups=%d changed=%d seconds=%.1f", num_images, *counts, num_changes, seconds)
    return result


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
