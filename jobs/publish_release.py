"""Publishes the evaluated release: manifest last, registered, champion; or puts the previous champion back.

Reads   releases/.building-<release_id> with its evaluation, the registry
Writes  releases/<release_id> (manifest.json last), an MLflow run and a registered version; aliases champion and previous
Engine  files and MLflow

    python -m jobs.publish_release --conf conf/local.yaml
    python -m jobs.publish_release --conf conf/local.yaml --rollback      champion and previous change places

Every step can be killed and is finished by the next run. One release is one version in the registry, however often this runs.
"""

import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.building import (
    WORK_FILES,
    BuildPlan,
    find_building,
    finished_folders,
    manifest_of,
    read_evaluation,
    read_wanted,
)
from jobs.config import Config, JobError, run_job
from jobs.failpoint import failpoint
from jobs.gate import GATE_EXIT_CODE
from jobs.raydata.staging import only_run
from jobs.release_registry import ROLLED_BACK_TAG, Registry, now
from jobs.retention import remove_old_releases
from jobs.reuse import drop_originals
from jobs.runs import configure_logging, pairs
from serve.index.manifest import (
    MANIFEST_NAME,
    ReleaseError,
    file_sha256,
    read_manifest,
    sync_folder,
    verify_release,
    write_manifest,
)
from serve.registry import CHAMPION, PREVIOUS, registered

log = logging.getLogger("jobs.publish_release")


@dataclass(frozen=True)
class PublishResult:
    """What is served from now on."""

    release_id: str
    version: str
    changed: bool
    previous: str | None  # release id
    removed: int  # old releases


def run(config: Config, rollback: bool = False) -> PublishResult:
    """Publishes what waits, or with `rollback` puts the previous champion back. Raises JobError."""
    with only_run(config.store.staging / "publish_release", "publish_release"):
        try:
            registry = Registry(config)
            result = roll_back(config, registry) if rollback else publish(config, registry)
        except ReleaseError as error:
            raise JobError(str(error)) from error
    log.info("publish_release %s", pairs(vars(result)))
    return result


def publish(config: Config, registry: Registry) -> PublishResult:
    """Finishes the release being built, then registers and promotes whatever is not yet."""
    found = find_building(config.store)
    if found is not None:
        finish_folder(config, *found)
        failpoint("publish:after_rename")
    wanted = read_wanted(config.store)
    changed = False
    for folder in finished_folders(config.store.releases):
        tidy(folder)
        version = registry.registered_version(folder)
        failpoint("publish:after_register")
        if folder.name == wanted and ROLLED_BACK_TAG not in version.tags:
            changed = registry.promote(version)
    champion = registered(config.registry, config.store, CHAMPION)
    if champion is None:
        raise JobError("nothing to publish and no champion yet: run `python -m jobs.nightly --conf FILE --set feed.uri=PATH`")
    if champion.release_id != wanted:
        log.warning("release=%s was rolled back and stays so; champion is %s", wanted, champion.release_id)
    elif not changed:
        log.info("nothing changed: release=%s is champion already", champion.release_id)
    removed = remove_old_releases(config, registry)
    drop_originals(config.store, finished_folders(config.store.releases)[-2:])
    previous = registered(config.registry, config.store, PREVIOUS)
    return PublishResult(champion.release_id, champion.version, changed, previous.release_id if previous else None, removed)


def finish_folder(config: Config, folder: Path, plan: BuildPlan) -> None:
    """Verifies every shard, writes the manifest, moves the folder to its final name."""
    evaluation = read_evaluation(folder)
    if not evaluation.passed:
        raise JobError(f"release {plan.release_id} did not pass its evaluation: {evaluation.metrics}", GATE_EXIT_CODE)
    manifest = manifest_of(folder, plan, evaluation)
    verify_release(folder, manifest)
    write_manifest(folder, manifest)
    failpoint("publish:after_manifest")
    folder.rename(config.store.releases / plan.release_id)
    sync_folder(config.store.releases)


def tidy(folder: Path) -> None:
    """Removes what only the building of a release needed."""
    for path in (folder / name for name in WORK_FILES):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def roll_back(config: Config, registry: Registry) -> PublishResult:
    """Champion and previous change places, after every file of the previous release was checked."""
    champion, previous = (registered(config.registry, config.store, alias) for alias in (CHAMPION, PREVIOUS))
    if champion is None or previous is None or champion.version == previous.version:
        raise JobError("there is no previous release to go back to; only a second published release makes one")
    manifest = read_manifest(previous.folder)
    if file_sha256(previous.folder / MANIFEST_NAME) != previous.manifest_sha256:
        raise JobError(f"{previous.folder / MANIFEST_NAME}: changed since it was published; it can't be rolled back to")
    verify_release(previous.folder, manifest)
    registry.set_alias(CHAMPION, previous.version)
    registry.set_alias(PREVIOUS, champion.version)
    if int(champion.version) > int(previous.version):  # back; the same command again goes forward
        registry.tag(champion.version, ROLLED_BACK_TAG, now())
    registry.untag(previous.version, ROLLED_BACK_TAG)
    sys.stdout.write(f"rolled back: champion is {previous.release_id} (was {champion.release_id}, now previous)\n")
    return PublishResult(previous.release_id, previous.version, True, champion.release_id, 0)


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, flags={"rollback": "champion and previous change places; nothing else is done"})


if __name__ == "__main__":
    main()
