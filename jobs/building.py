"""A release while it is being built: where its parts lie, its plan, its measurements, and the manifest they become.

    <store.root>/releases/.building-<release_id>/
        staged/<shard>.crops.parquet, .products.parquet    rows of one shard, unordered, as train_index joined them
        staged/<shard>.f16  their vectors in the order of the shard's rows, exact: what evaluate_index compares with
        plan.json           written last by train_index: exact versions, partitions, shards, templates
        shards/<shard>/     one folder a shard; appears whole
        entries/<shard>.json    sizes and digests of a finished shard
        evaluation.json     what evaluate_index measured and chose
        waterfall.*         which stage lost which known answer: table, every miss, picture
        manifest.json       the last file; then the folder is renamed to releases/<release_id>

releases/.wanted holds the id of the release that the newest input makes. One release is being built at a time: a plan for other
versions replaces what an older run left.
"""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jobs.config import JobError
from serve.index.hash_exit import HashExit
from serve.index.manifest import (
    MANIFEST_NAME,
    BundleEntry,
    Counts,
    FileEntry,
    HashEntry,
    InsidePath,
    Manifest,
    NoMatchEntry,
    OperatingPoint,
    Part,
    PartitionEntry,
    PartitionSpec,
    ShardEntry,
    read_manifest,
    write_durably,
)
from serve.index.spec import VectorKind
from serve.settings import StoreConfig
from serve.vision.hash import HASH_KIND, HASH_VERSION

CODE_VERSION = "0.1.0"  # of pyproject.toml (a test holds them together); the code may run without being installed
PREFIX = ".building-"
WANTED_FILE = ".wanted"
WORK_FILES = ("staged", "entries", "plan.json", "evaluation.json")
WATERFALL_FILES = ("waterfall.txt", "waterfall.json", "waterfall.png")  # they stay in the release, and go to MLflow


class ShardPlan(Part):
    """One shard to build."""

    path: InsidePath  # in the release folder
    bucket: int
    num_rows: int
    rows_digest: str  # of its photos, see jobs.reuse
    reused: bool  # linked from an earlier release, not to be built
    build_ram_bytes: int  # estimates, see serve.index.plan
    disk_bytes: int

    @property
    def name(self) -> str:
        return Path(self.path).name


class PartitionPlan(Part):
    """One partition to build."""

    name: str
    categories: tuple[str, ...]
    factory: str
    vectors: VectorKind
    nprobes: tuple[int, ...]
    template_digest: str | None
    shards: tuple[ShardPlan, ...]


class BuildPlan(Part):
    """Everything that is decided before the first shard is built."""

    release_id: str
    code_version: str
    tables: dict[str, int]
    bundle: BundleEntry
    num_buckets: int
    partition_depth: int
    refine_factor: int
    partitions: tuple[PartitionPlan, ...]
    counts: Counts
    models: tuple[FileEntry, ...] = ()  # copied into the release, see jobs.release_models


class Evaluation(Part):
    """What evaluate_index measured and chose; `passed` = good enough to be published."""

    passed: bool
    metrics: dict[str, float]
    specs: dict[str, PartitionSpec]  # by partition
    points: dict[str, tuple[OperatingPoint, ...]]  # that they were chosen from
    route_threshold: float
    hash: HashEntry
    no_match: NoMatchEntry | None = None


def building_folder(store: StoreConfig, release_id: str) -> Path:
    """Where release `release_id` is built."""
    return store.releases / f"{PREFIX}{release_id}"


def find_building(store: StoreConfig) -> tuple[Path, BuildPlan] | None:
    """The planned release that waits to be built, evaluated or published; None when there is none."""
    plans = sorted(store.releases.glob(f"{PREFIX}*/plan.json"))
    if len(plans) > 1:
        raise JobError(f"{store.releases}: several releases are being built; run train_index again, it keeps the right one")
    return (plans[0].parent, BuildPlan.model_validate_json(plans[0].read_bytes())) if plans else None


def write_wanted(store: StoreConfig, release_id: str) -> None:
    """From now on `release_id` is the one to publish."""
    store.releases.mkdir(parents=True, exist_ok=True)
    write_durably(store.releases / WANTED_FILE, release_id.encode())


def read_wanted(store: StoreConfig) -> str:
    """The release that the newest input makes. Raises JobError when train_index has never run."""
    path = store.releases / WANTED_FILE
    if not path.is_file():
        raise JobError(f"{path}: missing, nothing was ever planned; run `python -m jobs.nightly --conf FILE --set feed.uri=PATH`")
    return path.read_text()


def remove_other_buildings(store: StoreConfig, release_id: str) -> None:
    """Forgets releases that were being built from other versions."""
    for folder in store.releases.glob(f"{PREFIX}*"):
        if folder != building_folder(store, release_id):
            shutil.rmtree(folder)


def finished_folders(releases: Path) -> list[Path]:
    """Releases with a manifest, oldest first."""
    folders = [path.parent for path in releases.glob(f"[!.]*/{MANIFEST_NAME}")]
    return sorted(folders, key=lambda folder: (read_manifest(folder).created_at, folder.name))


def next_moment(releases: Path) -> datetime:
    """Now; where a clock was put back, a second after the newest release: which one is older must never depend on clocks."""
    now = datetime.now(UTC).replace(microsecond=0)
    made = (datetime.fromisoformat(read_manifest(folder).created_at) for folder in finished_folders(releases))
    return max([now, *(moment + timedelta(seconds=1) for moment in made)])


def vectors_path(folder: Path, shard: ShardPlan) -> Path:
    """The shard's vectors as they were embedded, (N, D) fp16 in the order of its rows."""
    return folder / "staged" / f"{shard.name}.f16"


def write_part(path: Path, part: Part) -> None:
    """`part` as JSON, in one step."""
    write_durably(path, (json.dumps(part.model_dump(mode="json"), indent=1) + "\n").encode())


def read_entry(folder: Path, shard: ShardPlan) -> ShardEntry | None:
    """What a finished shard is made of; None when it is not finished."""
    path = folder / "entries" / f"{shard.name}.json"
    return ShardEntry.model_validate_json(path.read_bytes()) if path.is_file() else None


def read_evaluation(folder: Path) -> Evaluation:
    """What evaluate_index wrote. Raises JobError when it has not run."""
    path = folder / "evaluation.json"
    if not path.is_file():
        raise JobError(f"{path}: missing; run `python -m jobs.evaluate_index` first")
    return Evaluation.model_validate_json(path.read_bytes())


def first_specs(plan: BuildPlan) -> dict[str, PartitionSpec]:
    """Search settings before they are chosen by measurement."""
    return {
        partition.name: PartitionSpec(
            factory=partition.factory,
            vectors=partition.vectors,
            nprobe=partition.nprobes[0],
            refine_factor=plan.refine_factor,
            metric="cosine",
        )
        for partition in plan.partitions
    }


def hash_entry(found: HashExit) -> HashEntry:
    """The calibrated hash stage as the manifest keeps it."""
    return HashEntry(
        kind=HASH_KIND,
        version=HASH_VERSION,
        max_distance=found.max_distance,
        max_colour_distance=found.max_colour_distance,
        min_quality=found.min_quality,
        false_accept_frac=found.false_accept_frac,
        found_frac=found.found_frac,
    )


def manifest_of(folder: Path, plan: BuildPlan, evaluation: Evaluation) -> Manifest:
    """The manifest of the shards that were built, as they were measured. Raises JobError when one is missing."""
    entries = {shard.path: read_entry(folder, shard) for partition in plan.partitions for shard in partition.shards}
    missing = sorted(path for path, entry in entries.items() if entry is None)
    if missing:
        raise JobError(f"{folder}: {len(missing)} shards are not built, such as {missing[0]}; run build_shards first")
    return Manifest(
        release_id=plan.release_id,
        created_at=next_moment(folder.parent).isoformat(timespec="seconds"),
        code_version=plan.code_version,
        tables=plan.tables,
        bundle=plan.bundle,
        hash=evaluation.hash,
        route_threshold=evaluation.route_threshold,
        no_match=evaluation.no_match,
        num_buckets=plan.num_buckets,
        partition_depth=plan.partition_depth,
        partitions=tuple(
            PartitionEntry(
                name=partition.name,
                categories=partition.categories,
                spec=evaluation.specs[partition.name],
                template_digest=partition.template_digest,
                points=evaluation.points.get(partition.name, ()),
                shards=tuple(entry for shard in partition.shards if (entry := entries[shard.path]) is not None),
            )
            for partition in plan.partitions
        ),
        counts=plan.counts,
        metrics=evaluation.metrics,
        models=plan.models,
    )
