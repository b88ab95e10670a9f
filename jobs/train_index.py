"""Plans the next release: exact versions in, partitions and shards out, one trained template for each partition.

Reads   products, images, fetches, features (each at one exact version), the bundle
Writes  releases/.building-<release_id> (staged rows, linked shards, plan.json last), templates by digest
Engine  pyarrow joins and streams the rows, Ray trains one FAISS template a task

    python -m jobs.train_index --conf conf/local.yaml [--set section.key=value ...]

The release id is a digest of everything that goes in, so the same input is the same release: nothing is planned again when it is
published already, and a plan that is there is kept. Shards that an earlier release has as well are linked (jobs.reuse): neither
their rows nor their vectors are read.
"""

import hashlib
import json
import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
from deltalake.exceptions import DeltaError

from jobs.building import (
    CODE_VERSION,
    BuildPlan,
    PartitionPlan,
    ShardPlan,
    building_folder,
    find_building,
    remove_other_buildings,
    write_part,
    write_wanted,
)
from jobs.config import Config, JobError, run_job
from jobs.failpoint import failpoint
from jobs.inserts_read import inserts_read
from jobs.raydata.delta import pinned_version
from jobs.raydata.session import start_ray
from jobs.release_models import copy_models, current_models
from jobs.reuse import EarlierShard, EarlierShards, carry_over, read_generation
from jobs.run_records import versions_as_of
from jobs.runs import configure_logging, pairs
from jobs.staged_rows import CatalogRows, read_rows, stage_crops, stage_products
from jobs.tables import Tables, table_state
from jobs.templates import find_or_train, kept_template, record_of
from serve.index.inserts import INSERTS_TABLE
from serve.index.manifest import FORMAT_VERSION, MANIFEST_NAME, BundleEntry
from serve.index.plan import IndexPlan, build_ram_bytes, disk_bytes, plan_index
from serve.vision.bundle import assemble_bundle, bundle_digest
from serve.vision.bundle_files import read_config

log = logging.getLogger("jobs.train_index")

SHARED = "small partitions"
TemplateGroup = tuple[IndexPlan, str]
WRITERS = {
    "products": "jobs.curate_catalog",
    "images": "jobs.curate_catalog",
    "fetches": "jobs.embed_images",
    "features": "jobs.embed_images",
}


@dataclass(frozen=True)
class TrainResult:
    """What was planned."""

    release_id: str
    changed: bool
    partitions: int
    shards: int
    reused: int  # shards of earlier releases
    products: int
    crops: int


def run(config: Config) -> TrainResult:
    """Plans the release of the newest versions. Raises JobError."""
    tables = Tables(config.store.tables)
    versions = versions_of(config, tables)
    bundle_folder = assemble_bundle(config.bundle, config.store.bundles, config.registry.uri)
    digest = bundle_digest(bundle_folder)
    models = current_models(config.store)
    release_id = release_id_of(config, states_of(tables, versions), digest, models)
    write_wanted(config.store, release_id)
    remove_other_buildings(config.store, release_id)
    if (config.store.releases / release_id / MANIFEST_NAME).is_file():
        log.info("nothing changed: release=%s has these versions", release_id)
        return TrainResult(release_id, False, 0, 0, 0, 0, 0)
    found = find_building(config.store)
    if found is not None:
        log.info("release=%s is planned already", release_id)
        return result_of(found[1])
    folder = building_folder(config.store, release_id)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "staged").mkdir(parents=True)
    try:
        rows = read_rows(tables, versions, digest, config.index, read_generation(config.store))
    except (DeltaError, FileNotFoundError) as error:
        raise unreadable(tables, versions) from error
    plans = [plan_partition(cut.rows_by_bucket, rows, config) for cut in rows.cuts]
    stage_products(tables, versions, rows.photos, [products_path(folder, name) for name in rows.names])
    earlier = EarlierShards(config.store, rows.dim)
    templates, reused = stage_and_train(config, folder, tables, versions, digest, rows, plans, earlier)
    failpoint("train:after_templates")
    shards = [plan_shard(rows, number, plans[number // rows.num_buckets], number in reused) for number in range(len(rows.names))]
    for number, shard_found in reused.items():
        carry_over(folder, shards[number], plans[number // rows.num_buckets].vectors, shard_found, config.store)
    plan = BuildPlan(
        release_id=release_id,
        code_version=CODE_VERSION,
        tables=versions,
        bundle=BundleEntry(
            name=read_config(bundle_folder).name or "",
            digest=digest,
            folder=str(bundle_folder.resolve().relative_to(config.store.root.resolve())),
            dim=rows.dim,
        ),
        num_buckets=config.index.num_shards,
        partition_depth=config.index.partition_depth,
        refine_factor=config.index.refine_factor,
        partitions=tuple(
            PartitionPlan(
                name=cut.name,
                categories=cut.categories,
                factory=plans[p].factory,
                vectors=plans[p].vectors,
                nprobes=plans[p].nprobes,
                template_digest=templates[p],
                shards=tuple(shards[number] for number in rows.shards_of(p)),
            )
            for p, cut in enumerate(rows.cuts)
        ),
        counts=rows.counts,
        models=copy_models(config.store, models, folder),
    )
    write_part(folder / "plan.json", plan)
    result = result_of(plan)
    log.info("train_index %s", pairs(vars(result)))
    return result


def versions_of(config: Config, tables: Tables) -> dict[str, int]:
    """The newest version of every table that a release is made of, or those of nightly.as_of."""
    if config.nightly.as_of is not None:
        found = versions_as_of(config, config.nightly.as_of)
        return {name: found[name] for name in (*WRITERS, INSERTS_TABLE) if name in found}
    versions = {name: pinned_version(tables, name, written_by=writer) for name, writer in WRITERS.items()}
    if (folded := inserts_read(config.store)) is not None:
        versions[INSERTS_TABLE] = folded
    return versions


def states_of(tables: Tables, versions: dict[str, int]) -> dict[str, Any]:
    """What tells these versions from every other of the same number; of `inserts` the number is enough, it is folded in."""
    try:
        return {name: v if name == INSERTS_TABLE else table_state(tables, name, v) for name, v in versions.items()}
    except DeltaError as error:
        raise unreadable(tables, versions) from error


def unreadable(tables: Tables, versions: dict[str, int]) -> JobError:
    """Of versions that are gone."""
    return JobError(f"{tables.root}: versions {versions} can't be read any more; clean_store removes old ones")


def plan_shard(rows: CatalogRows, number: int, plan: IndexPlan, reused: bool) -> ShardPlan:
    """One shard, with what building it takes."""
    num_rows = rows.num_rows(number)
    return ShardPlan(
        path=f"shards/{rows.names[number]}",
        bucket=number % rows.num_buckets,
        num_rows=num_rows,
        rows_digest=rows.digests[number],
        reused=reused,
        build_ram_bytes=build_ram_bytes(plan, num_rows, rows.dim),
        disk_bytes=disk_bytes(plan, num_rows, rows.dim),
    )


def release_id_of(config: Config, states: dict[str, Any], digest: str, models: dict[str, str]) -> str:
    """The same for the same states of the tables, bundle, models, index settings and formats."""
    index = config.index.model_dump(mode="json", exclude={"threads"})
    parts = [Tables(config.store.tables).root, states, digest, index, config.hash.model_dump(mode="json"), FORMAT_VERSION]
    parts += [models] if models else []
    parts += [generation] if (generation := read_generation(config.store)) else []
    return "r" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def plan_partition(rows_by_bucket: Sequence[int], rows: CatalogRows, config: Config) -> IndexPlan:
    """`plan_index` within each row's share of index.max_ram_bytes, its refusal as a JobError."""
    most = config.index.max_ram_bytes or math.inf
    try:
        return plan_index(max(rows_by_bucket), rows.dim, config.index, most / rows.counts.crops, sum(rows_by_bucket))
    except ValueError as error:
        raise JobError(str(error)) from error


def crops_path(folder: Path, shard: str) -> Path:
    """Staged rows of a shard."""
    return folder / "staged" / f"{shard}.crops.parquet"


def products_path(folder: Path, shard: str) -> Path:
    """Staged products of a shard."""
    return folder / "staged" / f"{shard}.products.parquet"


def stage_and_train(
    config: Config,
    folder: Path,
    tables: Tables,
    versions: dict[str, int],
    bundle_digest: str,
    rows: CatalogRows,
    plans: list[IndexPlan],
    earlier: EarlierShards,
) -> tuple[list[str | None], dict[int, EarlierShard]]:
    """Digest of each partition's template (None where it is flat), and the shards that earlier releases have, by number.

    Rows are staged where a shard is to be built. Templates are trained, or measured for drift, on the rows of all their
    partitions, so that these are staged whole as soon as one of their shards changed.
    """

    def earlier_shards(members: list[int], template: str | None) -> Iterator[tuple[int, EarlierShard | None]]:
        for p in members:
            for number in rows.shards_of(p):
                yield number, earlier.find(rows.digests[number], plans[p], template)

    templates: list[str | None] = [None] * len(plans)
    flat = [p for p, plan in enumerate(plans) if plan.is_flat]
    reused = {number: found for number, found in earlier_shards(flat, None) if found is not None}
    unsettled = {}
    for group, members in template_groups(rows, plans, config).items():
        plan, name = group
        record = record_of(config.store.templates, plan, rows.dim, name, bundle_digest, config.index)
        kept = kept_template(config.store.templates, record)
        if kept is not None and all(found for _, found in earlier_shards(members, kept.digest)):
            reused |= {number: found for number, found in earlier_shards(members, kept.digest) if found is not None}
            for p in members:
                templates[p] = kept.digest
        else:
            unsettled[group] = members
    wanted = [number for number in range(len(rows.names)) if number not in reused]
    if wanted:
        photos = rows.photos.filter(pc.field("shard").isin(wanted))
        paths = {number: crops_path(folder, rows.names[number]) for number in wanted}
        stage_crops(tables, versions, bundle_digest, photos, paths)
    failpoint("train:after_staging")
    for members, template in train_all(config, folder, rows, unsettled, bundle_digest):
        for p in members:
            templates[p] = template
        reused |= {number: found for number, found in earlier_shards(members, template) if found is not None}
    for cut, plan, digest in zip(rows.cuts, plans, templates, strict=True):
        log.info("partition=%s rows=%d factory=%s template=%s", cut.name, sum(cut.rows_by_bucket), plan.factory, digest)
    return templates, reused


def template_groups(rows: CatalogRows, plans: list[IndexPlan], config: Config) -> dict[TemplateGroup, list[int]]:
    """Partitions that fill one template: each large one its own, the small ones of one plan share one. None of flat ones."""
    groups: defaultdict[TemplateGroup, list[int]] = defaultdict(list)
    generation = read_generation(config.store)
    for p, (cut, plan) in enumerate(zip(rows.cuts, plans, strict=True)):
        small = sum(cut.rows_by_bucket) < config.index.share_template_below_rows
        if not plan.is_flat:
            groups[plan, (SHARED if small else cut.name) + (f" {generation}" if generation else "")].append(p)
    return dict(groups)


def train_all(
    config: Config, folder: Path, rows: CatalogRows, groups: dict[TemplateGroup, list[int]], bundle_digest: str
) -> list[tuple[list[int], str]]:
    """The partitions of each group and the digest of their template."""
    if not groups:
        return []
    start_ray(config.ray)
    index = config.index
    train = ray.remote(num_cpus=index.threads, num_gpus=int(index.train_on_gpu))(find_or_train)
    config.store.templates.mkdir(parents=True, exist_ok=True)
    tasks = []
    for (plan, group), members in groups.items():
        files = [crops_path(folder, rows.names[number]) for p in members for number in rows.shards_of(p)]
        tasks.append(train.remote(config.store.templates, files, plan, rows.dim, group, bundle_digest, index))
    try:
        return list(zip(groups.values(), ray.get(tasks), strict=True))
    except ray.exceptions.RayTaskError as error:
        raise JobError(str(error.cause)) from error


def result_of(plan: BuildPlan) -> TrainResult:
    """Counts of a plan."""
    shards = [shard for partition in plan.partitions for shard in partition.shards]
    num_reused = sum(shard.reused for shard in shards)
    counts = plan.counts
    return TrainResult(plan.release_id, True, len(plan.partitions), len(shards), num_reused, counts.products, counts.crops)


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
