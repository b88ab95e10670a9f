"""What may go: releases beyond those that are kept, and what only they needed.

Kept are the champion, the previous one, the newest `publish.keep` besides, and those in `publish.pinned`. A version of a table is
kept as long as a kept release or work in progress names it.
"""

import json
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
from deltalake import DeltaTable

from jobs.building import find_building, finished_folders
from jobs.config import Config
from jobs.release_registry import Registry
from jobs.tables import Tables, table_version
from serve.index.manifest import read_manifest
from serve.registry import CHAMPION, PREVIOUS, registered

log = logging.getLogger(__name__)

OF_SMALL_COMMITS = ("inserts", "feedback", "judgments", "runs")
SMALL_FILES = 100  # that every reader of a table opens one by one
CHECKPOINT = ".checkpoint.parquet"  # after the version, of 20 digits


def remove_old_releases(config: Config, registry: Registry) -> int:
    """Deletes the folders of releases that are not kept; how many."""
    named = {found.folder for alias in (CHAMPION, PREVIOUS) if (found := registered(config.registry, config.store, alias))}
    folders = [folder for folder in finished_folders(config.store.releases) if folder.resolve() not in named]
    folders = [folder for folder in folders if folder.name not in config.publish.pinned]
    old = folders[: max(len(folders) - config.publish.keep, 0)]
    for folder in old:
        remove_release(config, registry, folder)
        log.info("release=%s removed: older than the %d kept", folder.name, config.publish.keep)
    for gone in config.store.releases.glob(".gone-*"):
        shutil.rmtree(gone)
    return len(old)


def remove_release(config: Config, registry: Registry, folder: Path) -> None:
    """Takes a release out of sight in one step; its files go with the next `.gone-*`."""
    folder.rename(folder.with_name(f".gone-{folder.name}"))
    registry.retire(folder.name)


def pinned_versions(config: Config) -> dict[str, set[int]]:
    """Versions of each table that kept releases and work in progress name."""
    pinned: defaultdict[str, set[int]] = defaultdict(set)
    building = find_building(config.store)
    named = [read_manifest(folder).tables for folder in finished_folders(config.store.releases)]
    for versions in [*named, building[1].tables if building is not None else {}]:
        for name, version in versions.items():
            pinned[name].add(version)
    for plan in config.store.staging.glob("*/*/plan.json"):
        pinned["images"].add(int(json.loads(plan.read_text())["images_version"]))
    return pinned


def vacuum(tables: Tables, name: str, keep: Iterable[int], min_age_hours: float) -> int:
    """Deletes the data files that only other versions of the table name, or none, once they are so old; how many.

    They are deleted without a commit, as a VACUUM would make: it changes no row, yet each version is a new release.
    """
    if table_version(tables, name) is None:
        return 0
    table = DeltaTable(tables.path(name))
    held = [version for version in sorted(keep) if version <= table.version()]
    unused = table.vacuum(
        retention_hours=int(min_age_hours), dry_run=True, enforce_retention_duration=False, full=True, keep_versions=held
    )
    filesystem, root = fsspec.core.url_to_fs(tables.path(name))
    removed = 0
    for path in unused:
        if filesystem.exists(f"{root}/{path}"):
            filesystem.rm_file(f"{root}/{path}")
            removed += 1
    log.info("table=%s versions kept=%s files removed=%d", name, held, removed)
    return removed


def compact(tables: Tables, name: str, small_files: int = SMALL_FILES) -> int:
    """Joins the files of a table that grows by small commits, once there are so many; how many were joined.

    The commit changes no row. Whoever reads the table on knows old rows in new files (serve.api.inserts).
    """
    if table_version(tables, name) is None:
        return 0
    table = DeltaTable(tables.path(name))
    if len(table.file_uris()) < small_files:
        return 0
    joined = int(table.optimize.compact()["numFilesRemoved"])
    log.info("table=%s files joined=%d", name, joined)
    return joined


def trim_log(tables: Tables, name: str, keep: Iterable[int], min_age_hours: float) -> int:
    """Deletes the entries of the table's log from before the newest checkpoint that every kept version can be read from, once
    they are so old; how many. Delta is told to leave them (LOG_IS_KEPT), since it knows nothing of releases.
    """
    if (newest := table_version(tables, name)) is None:
        return 0
    filesystem, log_folder = fsspec.core.url_to_fs(f"{tables.path(name)}/_delta_log")
    entries = {path.rsplit("/", 1)[-1]: path for path in filesystem.ls(log_folder, detail=False)}
    versions = {file: int(file[:20]) for file in entries if file[:20].isdigit()}
    oldest, old = min([*keep, newest]), datetime.now(UTC) - timedelta(hours=min_age_hours)
    checkpoints = [version for file, version in versions.items() if file[20:] == CHECKPOINT and version <= oldest]
    unneeded = [entries[file] for file, version in sorted(versions.items()) if version < max(checkpoints, default=0)]
    removed = [path for path in unneeded if filesystem.modified(path).astimezone(UTC) < old]
    for path in removed:
        filesystem.rm_file(path)
    return len(removed)


def unused_files(config: Config, min_age_hours: float) -> list[Path]:
    """What killed runs left, and templates and models that no kept release and no record names, once they are so old."""
    store, old = config.store, time.time() - 3600 * min_age_hours
    named = {
        partition.template_digest for folder in finished_folders(store.releases) for partition in read_manifest(folder).partitions
    }
    if (building := find_building(store)) is not None:
        named |= {partition.template_digest for partition in building[1].partitions}
    named |= {json.loads(record.read_text())["digest"] for record in store.templates.glob("*.json")}
    found = [path for path in store.templates.glob("*.faiss") if path.stem not in named]
    for current in (store.root / "models").glob("*/current"):
        found += [path for path in current.parent.iterdir() if path.is_dir() and path.name != current.read_text()]
    for folder in (store.root, store.releases, store.templates, *store.staging.glob("*")):
        found += [path for path in folder.glob(".*") if path.name.split(".")[-1].isdigit()]  # write_durably, half done
    found += [*store.staging.glob("*/.new-*"), *store.staging.glob("*/.gone-*"), *store.bundles.glob(".assembling-*")]
    return [path for path in found if path.stat().st_mtime < old]
