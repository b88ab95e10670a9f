"""Plans the next release: exact versions in, partitions and shards out, one trained template for each partition.

Reads   products, images, fetches, features (each at one exact version), the bundle
Writes  releases/.building-<release_id> (staged rows, plan.json last), templates by digest
Engine  pyarrow joins and streams the rows, Ray trains one FAISS template a task

    python -m jobs.train_index --conf conf/local.yaml [--set section.key=value ...]

The release id is a digest of everything that goes in, so the same input is the same release: nothing is planned again when it is
published already, and a plan that is there is kept.
"""

import hashlib
import json
import logging
import math
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import ray

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
from jobs.runs import configure_logging, pairs
from jobs.staged_rows import Cut, catalog_photos, count_crops, cut_shards, stage_crops, stage_products
from jobs.tables import Tables
from jobs.templates import find_or_train
from serve.index.inserts import INSERTS_TABLE
from serve.index.manifest import FORMAT_VERSION, MANIFEST_NAME, BundleEntry, Counts
from serve.index.plan import IndexPlan, build_ram_bytes, disk_bytes, plan_index
from serve.index.spec import IndexConfig
from serve.vision.bundle import assemble_bundle, bundle_digest
from serve.vision.bundle_files import read_config

log = logging.getLogger("jobs.train_index")

SHARED = "small partitions"
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
    products: int
    crops: int


def run(config: Config) -> TrainResult:
    """Plans the release of the newest versions. Raises JobError."""
    tables = Tables(config.store.tables)
    versions = {name: pinned_version(tables, name, written_by=writer) for name, writer in WRITERS.items()}
    if (folded := inserts_read(config.store)) is not None:
        versions[INSERTS_TABLE] = folded
    bundle_folder = assemble_bundle(config.bundle, config.store.bundles, config.registry.uri)
    digest = bundle_digest(bundle_folder)
    models = current_models(config.store)
    release_id = release_id_of(config, versions, digest, models)
    write_wanted(config.store, release_id)
    remove_other_buildings(config.store, release_id)
    if (config.store.releases / release_id / MANIFEST_NAME).is_file():
        log.info("nothing changed: release=%s has these versions", release_id)
        return TrainResult(release_id, False, 0, 0, 0, 0)
    found = find_building(config.store)
    if found is not None:
        log.info("release=%s is planned already", release_id)
        return result_of(found[1])
    folder = building_folder(config.store, release_id)
    shutil.rmtree(folder, ignore_errors=True)
    staged = stage(folder, tables, versions, digest, config.index)
    failpoint("train:after_staging")
    plans = [plan_partition(max(cut.rows_by_bucket), staged, config) for cut in staged.cuts]
    templates = train_all(config, folder, staged, plans, digest)
    failpoint("train:after_templates")
    plan = BuildPlan(
        release_id=release_id,
        code_version=CODE_VERSION,
        tables=versions,
        bundle=BundleEntry(
            name=read_config(bundle_folder).name or "",
            digest=digest,
            folder=str(bundle_folder.resolve().relative_to(config.store.root.resolve())),
            dim=staged.dim,
        ),
        num_buckets=config.index.num_shards,
        partition_depth=config.index.partition_depth,
        refine_factor=config.index.refine_factor,
        partitions=tuple(
            PartitionPlan(
                name=cut.name,
                categories=cut.categories,
                factory=index_plan.factory,
                vectors=index_plan.vectors,
                nprobes=index_plan.nprobes,
                template_digest=template,
                shards=tuple(
                    ShardPlan(
                        path=f"shards/{name}",
                        bucket=bucket,
                        num_rows=rows,
                        build_ram_bytes=build_ram_bytes(index_plan, rows, staged.dim),
                        disk_bytes=disk_bytes(index_plan, rows, staged.dim),
                    )
                    for bucket, (name, rows) in enumerate(zip(staged.shards_of(p), cut.rows_by_bucket, strict=True))
                ),
            )
            for p, (cut, index_plan, template) in enumerate(zip(staged.cuts, plans, templates, strict=True))
        ),
        counts=staged.counts,
        models=copy_models(config.store, models, folder),
    )
    write_part(folder / "plan.json", plan)
    result = result_of(plan)
    log.info("train_index %s", pairs(vars(result)))
    return result


@dataclass(frozen=True)
class Staged:
    """The rows of the planned release, cut and written."""

    cuts: list[Cut]
    num_buckets: int
    dim: int
    counts: Counts

    def shards_of(self, partition: int) -> list[str]:
        """Names of the partition's shards, by bucket."""
        return [shard_name(partition, bucket) for bucket in range(self.num_buckets)]


def shard_name(partition: int, bucket: int) -> str:
    """Name of a shard's folder."""
    return f"p{partition:03d}-b{bucket:03d}"


def stage(folder: Path, tables: Tables, versions: dict[str, int], digest: str, config: IndexConfig) -> Staged:
    """Joins the tables and writes the rows of every shard below `folder`. Raises JobError when there are none."""
    (folder / "staged").mkdir(parents=True)
    photos = catalog_photos(tables, versions, digest)
    if not photos.num_rows:
        raise JobError(f"{tables.root}: no product has an embedded photo (bundle {digest[:12]}); see table fetches for why")
    cuts, shard_numbers = cut_shards(photos, count_crops(tables, versions, digest), config)
    photos = photos.append_column("shard", pa.array(shard_numbers))
    names = [shard_name(partition, bucket) for partition in range(len(cuts)) for bucket in range(config.num_shards)]
    num_crops = stage_crops(tables, versions, digest, photos, [crops_path(folder, name) for name in names])
    stage_products(tables, versions, photos, [products_path(folder, name) for name in names])
    counts = Counts(products=len(photos["product_id"].unique()), images=len(photos["image_id"].unique()), crops=num_crops)
    return Staged(cuts, config.num_shards, embedding_dim(folder, names), counts)


def release_id_of(config: Config, versions: dict[str, int], digest: str, models: dict[str, str]) -> str:
    """The same for the same rows, bundle, models, index settings and formats."""
    index = config.index.model_dump(mode="json", exclude={"threads"})
    parts = [Tables(config.store.tables).root, versions, digest, index, config.hash.model_dump(mode="json"), FORMAT_VERSION]
    parts += [models] if models else []
    return "r" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def plan_partition(num_rows: int, staged: Staged, config: Config) -> IndexPlan:
    """`plan_index` within this row's share of index.max_ram_bytes, its refusal as a JobError."""
    most = config.index.max_ram_bytes or math.inf
    try:
        return plan_index(num_rows, staged.dim, config.index, most / staged.counts.crops)
    except ValueError as error:
        raise JobError(str(error)) from error


def crops_path(folder: Path, shard: str) -> Path:
    """Staged rows of a shard."""
    return folder / "staged" / f"{shard}.crops.parquet"


def products_path(folder: Path, shard: str) -> Path:
    """Staged products of a shard."""
    return folder / "staged" / f"{shard}.products.parquet"


def embedding_dim(folder: Path, names: list[str]) -> int:
    """Width of the vectors, from the first one; the shard writer checks them all."""
    first = pyarrow.dataset.dataset([crops_path(folder, name) for name in names]).head(1, columns=["embedding"])
    return len(first["embedding"][0].as_py()) // 2


def train_all(config: Config, folder: Path, staged: Staged, plans: list[IndexPlan], bundle_digest: str) -> list[str | None]:
    """Digest of each partition's template; None where it is flat. Small partitions of one plan share one."""
    if all(plan.is_flat for plan in plans):
        return [None] * len(plans)
    start_ray(config.ray)
    index = config.index
    train = ray.remote(num_cpus=index.threads, num_gpus=int(index.train_on_gpu))(find_or_train)
    config.store.templates.mkdir(parents=True, exist_ok=True)
    groups: defaultdict[tuple[IndexPlan, str], list[int]] = defaultdict(list)
    for p, (cut, plan) in enumerate(zip(staged.cuts, plans, strict=True)):
        small = sum(cut.rows_by_bucket) < index.share_template_below_rows
        if not plan.is_flat:
            groups[plan, SHARED if small else cut.name].append(p)
    tasks = {}
    for (plan, group), members in groups.items():
        files = [crops_path(folder, name) for p in members for name in staged.shards_of(p)]
        tasks[plan, group] = train.remote(config.store.templates, files, plan, staged.dim, group, bundle_digest, index)
    digests: list[str | None] = [None] * len(plans)
    for key, members in groups.items():
        try:
            digest = ray.get(tasks[key])
        except ray.exceptions.RayTaskError as error:
            raise JobError(str(error.cause)) from error
        for p in members:
            digests[p] = digest
    for cut, plan, digest in zip(staged.cuts, plans, digests, strict=True):
        log.info("partition=%s rows=%d factory=%s template=%s", cut.name, sum(cut.rows_by_bucket), plan.factory, digest)
    return digests


def result_of(plan: BuildPlan) -> TrainResult:
    """Counts of a plan."""
    shards = sum(len(partition.shards) for partition in plan.partitions)
    return TrainResult(plan.release_id, True, len(plan.partitions), shards, plan.counts.products, plan.counts.crops)


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
