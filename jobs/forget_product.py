"""Forgets products: removes every trace of them from the store, and proves it by looking into every file.

Reads   forget.product_ids, every table, release, model, report and log of the store
Writes  tables without their rows, without the photos that no product has any more, and without older versions; removes releases,
        models, reports and artifacts that hold them
Engine  delta-rs, files

First take them out of the feed (or DELETE /v1/products/ID) and run jobs.nightly, so that the champion no longer holds them. Then

    python -m jobs.forget_product --conf conf/local.yaml --set 'forget.product_ids=[boots-7]'

Exit status 0 means: no file below store.root and store.tables holds one of these ids. Versions of tables that older releases name
can be read no more; the next nightly run makes a release of the new ones, all of whose shards are linked.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

from jobs.building import finished_folders
from jobs.config import Config, JobError, run_job
from jobs.raydata.delta import check_count
from jobs.release_registry import Registry
from jobs.retention import remove_release, vacuum
from jobs.reuse import drop_originals
from jobs.run_records import only_run_of_store
from jobs.runs import Run, configure_logging, pairs
from jobs.tables import TABLE_NAMES, Tables, read_table, table_version
from jobs.traces import redact_log, traces
from serve.index.manifest import read_manifest
from serve.index.release import ProductStore
from serve.registry import CHAMPION, PREVIOUS, registered

log = logging.getLogger("jobs.forget_product")

OF_PRODUCTS = ("inserts", "feedback", "judgments")  # rows that do not leave with the feed
OF_NIGHTS = ("listings", "rejects", "products", "images")  # those that do
EXPENDABLE = ("mlruns", "models", "reports", "staging")  # folders of the store whose files may go one by one


@dataclass(frozen=True)
class ForgetResult:
    """What was removed."""

    rows: int
    releases: int
    files: int
    logs: int  # of Delta, that named them


def run(config: Config) -> ForgetResult:
    """Removes, then looks. Raises JobError where they are still in the catalog, or where a trace is left."""
    ids = config.forget.product_ids
    if not ids:
        raise JobError("forget.product_ids: none; name them with --set 'forget.product_ids=[ID]'")
    tables = Tables(config.store.tables)
    if "://" in tables.root:
        raise JobError(f"store.tables={tables.root}: only tables on a disk can be looked through")
    with only_run_of_store(config, Run("forget_product")):
        check_gone(config, tables, ids)
        others = ~pc.field("product_id").isin(pa.array(ids))
        rows = sum(keep_rows(tables, name, others) for name in OF_PRODUCTS) + drop_orphans(tables)
        releases = remove_releases(config, ids)
        drop_originals(config.store, finished_folders(config.store.releases))
        for name in TABLE_NAMES:
            vacuum(tables, name, (), min_age_hours=0)
        logs = sum(redact_log(Path(tables.path(name)), ids) for name in TABLE_NAMES if table_version(tables, name) is not None)
        files = remove_files(config, ids)
        left = traces([config.store.root, Path(tables.root)], ids)
    if left:
        raise JobError(f"{len(left)} files still name them, such as {left[0]}; remove them and run again")
    result = ForgetResult(rows, releases, files, logs)
    log.info("forget_product %s", pairs(vars(result)))
    return result


def check_gone(config: Config, tables: Tables, ids: Sequence[str]) -> None:
    """Raises JobError where the catalog, or the release that is served, still holds one of them."""
    todo = "take them out of the feed (or DELETE /v1/products/ID), run jobs.nightly, then this again"
    for name in OF_NIGHTS:
        if table_version(tables, name) is not None:
            known = read_table(tables, name, ["product_id"])["product_id"]
            still = known.filter(pc.is_in(known, pa.array(ids, known.type)))
            if len(still):
                raise JobError(f"{tables.path(name)} still holds {still[0].as_py()}: {todo}")
    champion = registered(config.registry, config.store, CHAMPION)
    if champion is not None and release_holds(champion.folder, ids):
        raise JobError(f"the champion {champion.release_id} still holds one of them: {todo}")


def release_holds(folder: Path, ids: Sequence[str]) -> bool:
    """Whether one of them is a product of the release."""
    store = ProductStore.open(folder, read_manifest(folder))
    return any(store.place(product_id) is not None for product_id in ids)


def keep_rows(tables: Tables, name: str, wanted: pc.Expression) -> int:
    """Leaves only the rows that are `wanted`; how many went.

    The table is written again as a whole: what delta-rs writes on DELETE (texts as views) Arrow's datasets can't filter.
    """
    if table_version(tables, name) is None:
        return 0
    table = DeltaTable(tables.path(name))
    num, num_kept = int(table.count()), int(table.to_pyarrow_dataset().count_rows(filter=wanted))
    if num_kept < num:
        write_deltalake(table, table.to_pyarrow_dataset().scanner(filter=wanted).to_reader(), mode="overwrite")
        check_count(tables, name, num_kept)
    return num - num_kept


def drop_orphans(tables: Tables) -> int:
    """Drops what is known of photos that no product has any more: whose they were cannot be told. How many rows."""
    if table_version(tables, "images") is None or table_version(tables, "fetches") is None:
        return 0
    uris = pc.unique(read_table(tables, "images", ["image_uri"])["image_uri"])
    num = sum(keep_rows(tables, name, pc.field("image_uri").isin(uris)) for name in ("fetches", "checks"))
    named = pc.unique(read_table(tables, "fetches", ["image_id"])["image_id"])
    return num + keep_rows(tables, "features", pc.field("image_id").isin(named))


def remove_releases(config: Config, ids: Sequence[str]) -> int:
    """Removes every release that holds one of them, pinned ones too; how many. The champion does not."""
    registry = Registry(config)
    held = [folder for folder in finished_folders(config.store.releases) if release_holds(folder, ids)]
    previous = registered(config.registry, config.store, PREVIOUS)
    for folder in held:
        if previous is not None and previous.folder == folder.resolve():
            registry.client.delete_registered_model_alias(registry.model, PREVIOUS)
        remove_release(config, registry, folder)
        log.info("release=%s removed: it holds what is to be forgotten", folder.name)
    for gone in config.store.releases.glob(".*"):  # and what was being built
        if gone.is_dir():
            shutil.rmtree(gone)
    return len(held)


def remove_files(config: Config, ids: Sequence[str]) -> int:
    """Removes reports, artifacts of MLflow, staged work and old models that name them; how many files."""
    root, num = config.store.root, 0
    current = [path.parent / path.read_text() for path in (root / "models").glob("*/current")]
    for path in traces([folder for folder in root.iterdir() if folder.name in EXPENDABLE], ids):
        if not any(path.is_relative_to(folder) for folder in current):
            path.unlink()
            num += 1
    return num


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, prints_result=True)


if __name__ == "__main__":
    main()
