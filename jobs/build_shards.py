"""Builds every shard of the planned release.

Reads   releases/.building-<release_id>: plan.json, staged rows; the trained templates
Writes  shards/<shard>/ and entries/<shard>.json there, each whole or not at all
Engine  Ray, one task a shard; FAISS fills the partition's template

    python -m jobs.build_shards --conf conf/local.yaml [--set section.key=value ...]

A shard that was finished and is undamaged is kept, so a run that was killed goes on where it was. Those of earlier releases
were linked by train_index.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import faiss
import pyarrow.parquet as pq
import ray

from jobs.building import BuildPlan, PartitionPlan, ShardPlan, find_building, read_entry, vectors_path, write_part
from jobs.config import Config, JobError, run_job
from jobs.failpoint import failpoint
from jobs.raydata.session import progress, start_ray
from jobs.reuse import keep_original
from jobs.runs import configure_logging, pairs
from serve.index.manifest import ReleaseError, ShardEntry, file_entry, file_sha256, sync_file, sync_folder, verify_shard
from serve.index.writer import write_shard
from serve.vision.bundle_files import ADDRESS_CHARS, read_config
from serve.vision.queries import load_queries

log = logging.getLogger("jobs.build_shards")


@dataclass(frozen=True)
class BuildResult:
    """What was built."""

    release_id: str
    shards: int
    built: int
    reused: int  # of an earlier release
    kept: int  # of an earlier run
    rows: int
    bytes: int


def run(config: Config) -> BuildResult:
    """Builds what is missing. Raises JobError."""
    found = find_building(config.store)
    if found is None:
        log.info("nothing to build")
        return BuildResult("", 0, 0, 0, 0, 0, 0)
    folder, plan = found
    (folder / "entries").mkdir(exist_ok=True)
    (folder / "shards").mkdir(exist_ok=True)
    work = [(partition, shard) for partition in plan.partitions for shard in partition.shards]
    missing = [(partition, shard) for partition, shard in work if not finished(folder, shard)]
    num_reused = sum(shard.reused for _, shard in work)
    if missing:
        start_ray(config.ray)
        check_room(folder, [shard for _, shard in missing])
        build = ray.remote(num_cpus=config.index.threads, max_retries=1)(build_shard)
        tasks = {
            build.options(memory=shard.build_ram_bytes).remote(folder, plan, partition, shard, config): shard
            for partition, shard in missing
        }
        with progress("build_shards", sum(shard.num_rows for _, shard in missing), "rows") as shown:
            waiting = list(tasks)
            while waiting:
                [done], waiting = ray.wait(waiting)
                try:
                    ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise JobError(f"{tasks[done].path}: {error.cause}") from error
                shown.add(tasks[done].num_rows)
                failpoint("build:after_shard")
    entries = [entry for _, shard in work if (entry := read_entry(folder, shard))]
    result = BuildResult(
        release_id=plan.release_id,
        shards=len(entries),
        built=len(missing),
        reused=num_reused,
        kept=len(work) - len(missing) - num_reused,
        rows=sum(entry.num_rows for entry in entries),
        bytes=sum(file.bytes for entry in entries for file in entry.files),
    )
    if result.rows != plan.counts.crops:
        raise JobError(f"{folder}: {result.rows} rows in the shards, {plan.counts.crops} in the plan; remove it and run again")
    log.info("build_shards %s", pairs(vars(result)))
    return result


def check_room(folder: Path, shards: list[ShardPlan]) -> None:
    """Raises JobError where a shard fits no machine's memory, or all of them do not fit the disk, by the plan's estimates."""
    largest = max(shards, key=lambda shard: shard.build_ram_bytes)
    most = max(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"])
    if largest.build_ram_bytes > most:
        raise JobError(
            f"{largest.path}: building its {largest.num_rows} rows takes about {largest.build_ram_bytes / 1e9:.2f} GB of memory, "
            f"the largest machine has {most / 1e9:.2f} GB for it: raise index.num_shards"
        )
    needed, free = sum(shard.disk_bytes for shard in shards), shutil.disk_usage(folder).free
    if needed > free:
        raise JobError(
            f"{folder}: {len(shards)} shards take about {needed / 1e9:.2f} GB of disk while they are built, {free / 1e9:.2f} GB "
            "are free: free some, lower publish.keep, or put store.root on a larger disk"
        )


def finished(folder: Path, shard: ShardPlan) -> bool:
    """Whether the shard is there, whole and undamaged."""
    entry = read_entry(folder, shard)
    if entry is None:
        return False
    try:
        verify_shard(folder, entry)
    except ReleaseError as error:
        if shard.reused:  # its rows were not staged: it takes another plan
            (folder / "plan.json").unlink()
            raise JobError(f"{error}; it was whole when it was linked: run again, it is built then") from error
        log.warning("shard=%s is built again: %s", shard.name, error)
        return False
    return True


def build_shard(folder: Path, plan: BuildPlan, partition: PartitionPlan, shard: ShardPlan, config: Config) -> None:
    """Builds one shard beside its place, syncs and digests it, moves it there, then writes its entry."""
    faiss.omp_set_num_threads(config.index.threads)
    target = folder / shard.path
    fresh = target.with_name(f".{target.name}")
    for leftover in (fresh, target):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    crops = folder / "staged" / f"{shard.name}.crops.parquet"
    products = pq.read_table(folder / "staged" / f"{shard.name}.products.parquet")
    template = read_template(config.store.templates, partition.template_digest)
    ordered = vectors_path(folder, shard)
    bundle = config.store.bundles / plan.bundle.digest[:ADDRESS_CHARS]
    queries_BD = load_queries(bundle, read_config(bundle), plan.bundle.dim)
    write_shard(fresh, crops, products, plan.bundle.dim, template, partition.vectors, ordered, queries_BD)
    files = []
    for path in sorted(fresh.iterdir()):
        sync_file(path)
        files.append(file_entry(fresh, path.name))
    failpoint("build:before_rename")
    fresh.rename(target)
    sync_folder(target.parent)
    entry = ShardEntry(
        path=shard.path,
        bucket=shard.bucket,
        num_rows=pq.read_metadata(crops).num_rows,
        num_products=products.num_rows,
        files=tuple(files),
        rows_digest=shard.rows_digest,
    )
    keep_original(config.store, ordered, shard.rows_digest, partition.vectors)
    write_part(folder / "entries" / f"{shard.name}.json", entry)


def read_template(templates: Path, digest: str | None) -> bytes | None:
    """The trained template, its bytes checked against its name; None for a flat partition. Raises ReleaseError."""
    if digest is None:
        return None
    path = templates / f"{digest}.faiss"
    if not path.is_file() or file_sha256(path) != digest:
        raise ReleaseError(f"{path}: missing or damaged; remove it and the folder of the release being built, and run again")
    return path.read_bytes()


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
