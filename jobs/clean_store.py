"""Clears away what no kept release needs: old releases, old versions of tables, what killed runs left.

Reads   releases and their manifests, the registry, the tables' logs
Writes  the tables that grow by small commits, their files joined; removes releases beyond `publish.keep` and `publish.pinned`,
        data files of versions that neither a kept release nor work in progress names and log entries from before all of those,
        unused templates and models, leftovers of killed runs
Engine  files, Delta's log

    python -m jobs.clean_store --conf conf/local.yaml [--set clean.min_age_hours=24]

It holds the lease of the nightly run: the two never work at a time.
"""

import logging
import shutil
from dataclasses import dataclass

from jobs.config import Config, run_job
from jobs.release_registry import Registry
from jobs.retention import OF_SMALL_COMMITS, compact, pinned_versions, remove_old_releases, trim_log, unused_files, vacuum
from jobs.run_records import only_run_of_store
from jobs.runs import Run, configure_logging, pairs
from jobs.tables import TABLE_NAMES, Tables

log = logging.getLogger("jobs.clean_store")


@dataclass(frozen=True)
class CleanResult:
    """What was removed; `joined_files` became few."""

    releases: int
    joined_files: int
    table_files: int
    log_files: int
    other_files: int


def run(config: Config) -> CleanResult:
    """Removes what may go. Raises JobError, with exit code 4 while a nightly run is on."""
    with only_run_of_store(config, Run("clean_store")):
        releases = remove_old_releases(config, Registry(config))
        pinned, tables = pinned_versions(config), Tables(config.store.tables)
        hours = config.clean.min_age_hours
        joined = sum(compact(tables, name) for name in OF_SMALL_COMMITS)
        files = sum(vacuum(tables, name, pinned[name], hours) for name in TABLE_NAMES)
        entries = sum(trim_log(tables, name, pinned[name], hours) for name in TABLE_NAMES)
        unused = unused_files(config, hours)
        for path in unused:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    result = CleanResult(releases, joined, files, entries, len(unused))
    log.info("clean_store %s", pairs(vars(result)))
    return result


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, prints_result=True)


if __name__ == "__main__":
    main()
