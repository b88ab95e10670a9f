"""Examines a shop's catalog: a page of its faults, each counted, the worst with pictures.

reads   products, images, rejects, fetches, features (of the current bundle), duplicates; the photos of the examples
writes  doctor.report: report.html, report.json; store.root/doctor_of.json: what they were made from, so that the same tables
        are examined once
engine  Spark; which fault is found how: jobs/spark/catalog_faults.py, colour_faults.py, siblings.py

It finds one picture under several products, near-duplicates across brands, wrong categories, colours that a photo lacks,
products without a photo, siblings that search cannot tell apart, dead links. What it finds fails nothing: the exit status is 0.

    python -m jobs.catalog_doctor --conf conf/local.yaml
"""

import json
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path

from pyspark.sql import DataFrame

from jobs.building import CODE_VERSION
from jobs.config import Config, JobError, run_job
from jobs.evaluation.colour_looks import confirmed
from jobs.evaluation.doctor_report import FINDINGS, Example, Facts, Finding, Product, write_doctor_report
from jobs.evaluation.look_alikes import look_alikes
from jobs.runs import configure_logging, pairs
from jobs.spark import catalog_faults, colour_faults, delta
from jobs.spark.session import spark_session
from jobs.spark.siblings import siblings
from jobs.tables import Tables, table_state
from serve.index.manifest import write_durably
from serve.vision.bundle import assemble_bundle, bundle_digest
from serve.vision.bundle_files import read_config

log = logging.getLogger("jobs.catalog_doctor")

READ = {
    "products": "curate_catalog",
    "images": "curate_catalog",
    "rejects": "curate_catalog",
    "fetches": "embed_images",
    "features": "embed_images",
    "duplicates": "group_duplicates",
}


@dataclass(frozen=True)
class DoctorResult:
    """How many of each fault, and whether a new page was written."""

    shared_picture: int
    across_brands: int
    wrong_category: int
    colour_differs: int
    without_photo: int
    look_alikes: int
    dead_links: int
    changed: bool


def run(config: Config) -> DoctorResult:
    """Examines the newest tables and writes the page. Raises JobError where a table is missing."""
    folder = assemble_bundle(config.bundle, config.store.bundles, config.registry.uri)
    return examine(config, bundle_digest(folder), labels_of(folder))


def labels_of(folder: Path) -> tuple[str, ...]:
    """Categories that the bundle in `folder` predicts; none without a head and without labelled vectors."""
    bundle = read_config(folder)
    assert bundle.encoder is not None, "read_config has checked it"
    voted = bundle.categories.labels if bundle.categories else ()
    return tuple(dict.fromkeys((*voted, *bundle.encoder.labels)))


def examine(config: Config, digest: str, labels: tuple[str, ...]) -> DoctorResult:
    """As `run`, for the bundle with this digest, which predicts these categories."""
    tables = Tables(config.store.tables)
    states = {name: state_of(tables, name) for name in READ}
    versions = {name: int(state[1]) for name, state in states.items()}
    settings = config.doctor.model_dump(mode="json")
    made_from = {"tables": states, "bundle": digest, "labels": list(labels), "code": CODE_VERSION, "settings": settings}
    path, page = config.store.root / "doctor_of.json", config.doctor.report / "report.html"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if kept.get("made_from") == made_from and page.is_file():
        log.info("nothing changed: these tables are examined, see %s", page)
        return DoctorResult(**kept["result"])
    start = time.perf_counter()
    facts, findings = find(config, tables, versions, digest, labels)
    write_doctor_report(config, facts, findings, versions)
    result = DoctorResult(**{finding.name: finding.count for finding in findings}, changed=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps({"made_from": made_from, "result": asdict(replace(result, changed=False))}).encode())
    log.info("catalog_doctor %s seconds=%.1f report=%s", pairs(asdict(result)), time.perf_counter() - start, page)
    return result


def state_of(tables: Tables, name: str) -> list[str | int]:
    """What tells the newest version of a table from every other. Raises JobError where there is none."""
    state = table_state(tables, name)
    if state is None:
        raise JobError(f"no table at {tables.path(name)}; run jobs.{READ[name]} first")
    return state


def find(
    config: Config, tables: Tables, versions: dict[str, int], digest: str, labels: tuple[str, ...]
) -> tuple[Facts, list[Finding]]:
    """What the catalog has, and its faults in the order of the page."""
    spark, start = spark_session(config.spark, "catalog_doctor"), time.perf_counter()
    frames = {name: delta.read(spark, tables.path(name), version) for name, version in versions.items()}
    frames["features"] = frames["features"].where(catalog_faults.of_bundle(digest))
    catalog = catalog_faults.catalog_of(frames["products"], frames["images"], frames["fetches"], digest).persist()
    row = catalog_faults.facts(catalog, labels).first()
    faults = faults_of(config, catalog, frames, labels if row["known"] else ()).persist()
    counts: dict[str, Counter[str]] = {name: Counter() for name in FINDINGS}
    for found in catalog_faults.counts(faults).collect():
        counts[found["finding"]][found["kind"]] = found["num"]
    examples: dict[str, list[Example]] = {name: [] for name in FINDINGS}
    for found in catalog_faults.worst(faults, config.doctor.examples, {"colour_differs": config.doctor.colour_photos}).collect():
        shown = tuple(Product(**product.asDict()) for product in found["shown"])
        examples[found["finding"]].append(Example(found["kind"], found["told"], shown))
    log.info("step=tables faults=%d seconds=%.1f", sum(map(Counter.total, counts.values())), time.perf_counter() - start)
    start = time.perf_counter()
    near = (row.asDict() for row in siblings(catalog, frames["features"]).toLocalIterator())
    num_pairs, examples["look_alikes"] = look_alikes(near, config.doctor.min_sibling_cosine, config.doctor.examples)
    counts["look_alikes"] = Counter(pairs=num_pairs)
    log.info("step=siblings pairs=%d seconds=%.1f", num_pairs, time.perf_counter() - start)
    for cached in (faults, catalog):
        cached.unpersist()
    suspects = examples["colour_differs"]
    facts = Facts(**row.asDict(), labels=labels, suspected=counts["colour_differs"].total(), looked_at=len(suspects))
    examples["colour_differs"] = differing = confirmed(config, suspects)
    counts["colour_differs"] = Counter(example.kind for example in differing)
    return facts, [Finding(name, dict(counts[name]), examples[name][: config.doctor.examples]) for name in FINDINGS]


def faults_of(config: Config, catalog: DataFrame, frames: dict[str, DataFrame], labels: tuple[str, ...]) -> DataFrame:
    """Every fault that the tables tell."""
    features, doctor = frames["features"], config.doctor
    found = [
        catalog_faults.shared_pictures(catalog),
        catalog_faults.across_brands(catalog, frames["duplicates"]),
        catalog_faults.without_photo(catalog, frames["rejects"]),
        catalog_faults.dead_links(catalog),
        colour_faults.colour_suspects(catalog, features),
    ]
    if labels:
        found.append(catalog_faults.wrong_categories(catalog, features, labels, doctor.min_category_prob))
    return reduce(DataFrame.unionByName, found)


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
