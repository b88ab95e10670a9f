"""Curates the catalog: turns the shop's feed into products and their photos, and sets bad rows aside with a reason.

reads   feed.uri: JSONL, CSV, Parquet or Delta; a row a product or a row an image; inserts: what came over HTTP
writes  listings (rows as they came), rejects (bad rows and why), products, images; a feed that says the same as the
        last one changes nothing, and one of the same bytes starts no Spark
engine  Spark

A feed is the whole catalog: products that are not in it (or only in rejected rows) leave the catalog, but for those that were
put over HTTP, which leave by DELETE. A change over HTTP counts until a feed row has a newer updated_at. Nothing is written
when more than feed.max_reject_frac of the rows are bad, or more than feed.max_withdrawn_frac of the products would leave.
The rules and their reasons are listed in jobs/spark/transforms.py.

    python -m jobs.curate_catalog --conf conf/local.yaml --set feed.uri=PATH
    ... --set feed.columns='{image_uri: path, category: category_path}' --set feed.defaults.currency=USD
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs import tables
from jobs.config import Config, FeedConfig, JobError, run_job
from jobs.curated import made_from, remember, result_of_same
from jobs.failpoint import failpoint
from jobs.gate import GATE_EXIT_CODE
from jobs.inserts_read import write_inserts_read
from jobs.runs import configure_logging, pairs
from jobs.spark import delta, transforms
from jobs.spark.feed import find_feed, read_feed
from jobs.spark.inserts import judged_changes
from jobs.spark.session import one_line, spark_session

log = logging.getLogger("jobs.curate_catalog")


@dataclass(frozen=True)
class CurateResult:
    """Rows of the four tables after the run, and whether any of them changed."""

    listings: int
    rejects: int
    products: int
    images: int
    changed: bool


@dataclass(frozen=True)
class CuratePlan:
    """What a run would change: rows to insert, update or delete by table, and the URIs that would be new in `images`."""

    listings: int
    rejects: int
    products: int
    images: int
    new_uris: int


def run(config: Config) -> CurateResult:
    """Reads the feed, checks it, and brings the tables to it. Raises JobError, with nothing changed."""
    version = tables.table_version(tables.Tables(config.store.tables), "inserts")
    source = made_from(config, version)
    if (kept := result_of_same(config, source)) is not None:
        log.info("nothing changed: feed.uri=%s says the same as last time", config.feed.uri)
        return CurateResult(**kept)
    with _checked(config, version) as (spark, specs, parts):
        result = _write(spark, specs, parts)
    if version is not None:  # last: what is taken for folded in must be in the tables
        write_inserts_read(config.store, version)
    remember(config, source, asdict(replace(result, changed=False)))
    return result


def plan(config: Config) -> CuratePlan:
    """Reads and checks the feed as `run` does, compares, and changes nothing. Raises JobError."""
    version = tables.table_version(tables.Tables(config.store.tables), "inserts")
    if result_of_same(config, made_from(config, version)) is not None:
        return CuratePlan(0, 0, 0, 0, 0)
    with _checked(config, version) as (spark, specs, parts):
        changes = {name: delta.count_differences(spark, spec, parts[name]) for name, spec in specs.items()}
        uris = parts["images"].select("image_uri").distinct()
        if delta.exists(spark, specs["images"].path):
            known = delta.read(spark, specs["images"].path).select("image_uri")
            uris = uris.join(known, on="image_uri", how="left_anti")
        return CuratePlan(**changes, new_uris=uris.count())


@contextmanager
def _checked(
    config: Config, version: int | None
) -> Iterator[tuple[SparkSession, dict[str, delta.TableSpec], dict[str, DataFrame]]]:
    """The feed's rows for each table, with `inserts` at `version` laid over, after every check that may refuse the feed."""
    _check_names(config.feed)
    spark = spark_session(config.spark, "curate_catalog")
    source = find_feed(spark, config.feed)
    rows = transforms.parsed(read_feed(spark, source), config.feed)
    rows = transforms.judged(rows, config.feed, source.folder)
    if version is not None:
        inserts = tables.read_table(tables.Tables(config.store.tables), "inserts", version=version).to_pylist()
        # Both sides are computed first: over all the rules twice in one plan, Spark's optimizer takes minutes and its heap.
        changes = judged_changes(spark, inserts, config.feed).localCheckpoint()
        rows = transforms.laid_over(rows.localCheckpoint(), changes)
    rows = transforms.settled(rows).persist()
    try:
        _check_feed(rows, config.feed)
        specs, parts = table_specs(tables.Tables(config.store.tables)), _parts(rows)
        _check_withdrawn(spark, specs["products"], parts["products"], config.feed)
        yield spark, specs, parts
    except PySparkException as error:
        raise JobError(f"feed.uri={config.feed.uri}: {one_line(error)}") from error
    finally:
        rows.unpersist()


def table_specs(paths: tables.Tables) -> dict[str, delta.TableSpec]:
    """The tables this job writes, in the order it writes them."""
    return {
        "listings": delta.TableSpec(paths.path("listings"), tables.LISTINGS, ("listing_id",), {}),
        "rejects": delta.TableSpec(paths.path("rejects"), tables.REJECTS, ("listing_id",), {"reason_given": "reason <> ''"}),
        "images": delta.TableSpec(
            paths.path("images"),
            tables.IMAGES,
            ("product_id", "position"),
            {"uri_is_absolute": "image_uri LIKE '%:%'", "position_counts": "position >= 0"},
        ),
        "products": delta.TableSpec(
            paths.path("products"),
            tables.PRODUCTS,
            ("product_id",),
            {
                "id_given": "product_id <> ''",
                "title_given": "title <> ''",
                "price_sane": "price IS NULL OR (price >= 0 AND currency IS NOT NULL)",
                "stock_sane": "stock IS NULL OR stock >= 0",
            },
        ),
    }


def _parts(rows: DataFrame) -> dict[str, DataFrame]:
    return {
        "listings": transforms.listings(rows),
        "rejects": transforms.rejects(rows),
        "images": transforms.images(rows),
        "products": transforms.products(rows),
    }


def _check_names(feed: FeedConfig) -> None:
    for key, names in (("columns", feed.columns), ("defaults", feed.defaults)):
        for name in names:
            if name not in transforms.FEED_COLUMNS:
                raise JobError(f"feed.{key}.{name}: no such column; allowed are {', '.join(sorted(transforms.FEED_COLUMNS))}")


def _check_feed(rows: DataFrame, feed: FeedConfig) -> None:
    """Refuses a feed without rows, without a column that was named, with too many bad rows, or with no product left."""
    found = {
        row["reason"]: row
        for row in rows.groupBy("fault.reason").agg(F.count("*").alias("rows"), F.count_if("kept").alias("kept")).collect()
    }
    num_rows, num_kept = sum(row["rows"] for row in found.values()), sum(row["kept"] for row in found.values())
    if not num_rows:
        where = "".join(f" with {theirs}={value}" for theirs, value in feed.where.items())
        raise JobError(f"feed.uri={feed.uri}: the feed has no rows{where}")
    faults = {reason: row["rows"] for reason, row in found.items() if reason}
    if faults.get("malformed_row") != num_rows:
        _check_columns(rows, feed)
    by_count = sorted(faults.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{reason} {count}" for reason, count in by_count)
    log.info("step=check rows=%d rejected=%d %s", num_rows, sum(faults.values()), pairs(dict(by_count)))
    if sum(faults.values()) > feed.max_reject_frac * num_rows:
        raise JobError(
            f"feed.uri={feed.uri}: {sum(faults.values())} of {num_rows} rows are bad ({reasons}), more than "
            f"feed.max_reject_frac={feed.max_reject_frac}; nothing was changed",
            GATE_EXIT_CODE,
        )
    if not num_kept:
        raise JobError(
            f"feed.uri={feed.uri}: no product left of {num_rows} rows ({reasons or 'all deleted'}); nothing was changed"
        )


def _check_columns(rows: DataFrame, feed: FeedConfig) -> None:
    """Refuses a mapping to a column that no row has."""
    has = {
        ours: F.try_variant_get("row", transforms.json_path(theirs), "variant").isNotNull()
        for ours, theirs in feed.columns.items()
    }
    if not has:
        return
    seen = rows.select(*(F.max(condition).alias(ours) for ours, condition in has.items())).first()
    for ours, theirs in feed.columns.items():
        if not seen[ours]:
            names = rows.limit(1000).select(F.explode(F.json_object_keys("raw")).alias("name")).distinct().orderBy("name")
            raise JobError(
                f"feed.columns.{ours}={theirs}: no such column in {feed.uri}; its columns are "
                f"{', '.join(row['name'] for row in names.limit(50).collect())}"
            )


def _check_withdrawn(spark: SparkSession, spec: delta.TableSpec, products: DataFrame, feed: FeedConfig) -> None:
    """Refuses a feed that would take too much of the catalog away."""
    if not delta.exists(spark, spec.path):
        return
    current = delta.read(spark, spec.path).select("product_id")
    num_current = current.count()
    num_withdrawn = current.join(products.select("product_id"), on="product_id", how="left_anti").count()
    if num_withdrawn > feed.max_withdrawn_frac * num_current:
        raise JobError(
            f"feed.uri={feed.uri}: {num_withdrawn} of {num_current} products of the catalog are not in it, more than "
            f"feed.max_withdrawn_frac={feed.max_withdrawn_frac}; nothing was changed",
            GATE_EXIT_CODE,
        )
    log.info("step=compare products=%d withdrawn=%d", num_current, num_withdrawn)


def _write(spark: SparkSession, specs: dict[str, delta.TableSpec], parts: dict[str, DataFrame]) -> CurateResult:
    """Products last: a run that was cut short is made good by the next one, and no product goes without its photos."""
    num_changes, num_rows = {}, {}
    for name, spec in specs.items():
        start = time.perf_counter()
        num_changes[name] = delta.write(spark, spec, parts[name])
        num_rows[name] = delta.read(spark, spec.path).count()
        failpoint(f"curate:after_{name}")
        seconds = time.perf_counter() - start
        log.info("step=write table=%s rows=%d changed=%d seconds=%.1f", name, num_rows[name], num_changes[name], seconds)
    return CurateResult(**num_rows, changed=any(num_changes.values()))


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
