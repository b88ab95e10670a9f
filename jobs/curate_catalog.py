"""Curates the catalog: turns the shop's feed into products and their photos, and sets bad rows aside with a reason.

reads   feed.uri: JSONL, CSV, Parquet or Delta; a row a product or a row an image; inserts: what came over HTTP
writes  listings (rows as they came), rejects (bad rows and why), products, images; a feed that says the same as the
        last one changes nothing, and one of the same bytes starts no Spark
engine  Spark

A feed is the whole catalog: products that are not in it (or only in rejected rows) leave the catalog, but for those that were
put over HTTP, which leave by DELETE. A change over HTTP counts until a feed row has a newer updated_at. Nothing is written
when more than feed.max_reject_frac of the rows are bad, or more than feed.max_withdrawn_frac of the products would leave.
From feed.part_from_rows rows on, only products are judged again that a changed row names (jobs/spark/feed_changes.py).
The rules and their reasons are listed in jobs/spark/transforms.py.

    python -m jobs.curate_catalog --conf conf/local.yaml --set feed.uri=PATH
    ... --set feed.columns='{image_uri: path, category: category_path}' --set feed.defaults.currency=USD
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs import tables
from jobs.config import Config, FeedConfig, JobError, run_job
from jobs.curated import judged_alike, made_from, remember, result_of_same
from jobs.failpoint import failpoint
from jobs.gate import GATE_EXIT_CODE
from jobs.inserts_read import write_inserts_read
from jobs.runs import configure_logging, pairs
from jobs.spark import delta, transforms
from jobs.spark.feed import find_feed, read_feed
from jobs.spark.feed_changes import Part, changed_part
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


@dataclass(frozen=True)
class Outside:
    """What the tables hold that a feed did not change: rows, the bad ones of them by reason, products."""

    rows: int
    faults: Counter[str]
    products: int


@dataclass(frozen=True)
class Checked:
    """What a feed says, after every check that may refuse it."""

    spark: SparkSession
    specs: dict[str, delta.TableSpec]
    rows: dict[str, DataFrame]  # for each table: all of it, or all of the part
    part: Part | None  # of the catalog that may have changed; none = all of it
    folder: str  # that relative photos were taken from, a URI

    @property
    def part_of(self) -> delta.PartOf | None:
        return None if self.part is None else self.part.of


def run(config: Config) -> CurateResult:
    """Reads the feed, checks it, and brings the tables to it. Raises JobError, with nothing changed."""
    version = tables.table_version(tables.Tables(config.store.tables), "inserts")
    source = made_from(config, version)
    if (kept := result_of_same(config, source)) is not None:
        log.info("nothing changed: feed.uri=%s says the same as last time", config.feed.uri)
        return CurateResult(**kept)
    with _checked(config, source, version) as checked:
        result = _write(checked)
    if version is not None:  # last: what is taken for folded in must be in the tables
        write_inserts_read(config.store, version)
    remember(config, source, checked.folder, asdict(replace(result, changed=False)))
    return result


def plan(config: Config) -> CuratePlan:
    """Reads and checks the feed as `run` does, compares, and changes nothing. Raises JobError."""
    version = tables.table_version(tables.Tables(config.store.tables), "inserts")
    source = made_from(config, version)
    if result_of_same(config, source) is not None:
        return CuratePlan(0, 0, 0, 0, 0)
    with _checked(config, source, version) as checked:
        spark, specs = checked.spark, checked.specs
        changes = {n: delta.count_differences(spark, specs[n], checked.rows[n], checked.part_of) for n in specs}
        uris = checked.rows["images"].select("image_uri").distinct()
        if delta.exists(spark, specs["images"].path):
            known = delta.read(spark, specs["images"].path).select("image_uri")
            uris = uris.join(known, on="image_uri", how="left_anti")
        return CuratePlan(**changes, new_uris=uris.count())


@contextmanager
def _checked(config: Config, source: dict[str, Any], inserts: int | None) -> Iterator[Checked]:
    """The feed's rows for each table, with `inserts` at that version laid over, after every check that may refuse the feed."""
    _check_names(config.feed)
    spark = spark_session(config.spark, "curate_catalog")
    found, specs = find_feed(spark, config.feed), table_specs(tables.Tables(config.store.tables))
    feed, changes, part, rows = read_feed(spark, found), None, None, None
    try:
        if inserts is not None:
            told = tables.read_table(tables.Tables(config.store.tables), "inserts", version=inserts).to_pylist()
            # Computed first: over all the rules twice in one plan, Spark's optimizer takes minutes and its heap.
            changes = judged_changes(spark, told, config.feed).localCheckpoint()
        if judged_alike(config, source, found.folder) and _is_large(spark, specs, config.feed):
            listings = delta.read(spark, specs["listings"].path).select("listing_id", "product_id")
            changed_ids = None if changes is None else changes.select("product.product_id")
            part = changed_part(feed, listings, lambda rows: transforms.product_ids(rows, config.feed), changed_ids)
        rows = transforms.parsed(feed if part is None else part.rows, config.feed)
        rows = transforms.judged(rows, config.feed, found.folder)
        if changes is not None:
            rows = transforms.laid_over(rows.localCheckpoint(), changes)
        rows = transforms.settled(rows).persist()
        _check_feed(rows, feed, config.feed, _outside(spark, specs, part))
        _check_withdrawn(spark, specs["products"], transforms.products(rows), part, config.feed)
        yield Checked(spark, specs, _by_table(rows), part, found.folder)
    except PySparkException as error:
        raise JobError(f"feed.uri={config.feed.uri}: {one_line(error)}") from error
    finally:
        if rows is not None:
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


def _by_table(rows: DataFrame) -> dict[str, DataFrame]:
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


def _is_large(spark: SparkSession, specs: dict[str, delta.TableSpec], feed: FeedConfig) -> bool:
    """Whether looking for the changed part first costs less than judging every row."""
    path = specs["listings"].path
    return delta.exists(spark, path) and delta.read(spark, path).count() >= feed.part_from_rows


def _outside(spark: SparkSession, specs: dict[str, delta.TableSpec], part: Part | None) -> Outside:
    """What the tables hold beside `part`."""
    if part is None:
        return Outside(0, Counter(), 0)
    held = {name: delta.read(spark, specs[name].path) for name in ("listings", "rejects", "products")}
    rows, products = (held[name].count() - part.of(held[name]).count() for name in ("listings", "products"))
    faults = Counter({row["reason"]: row["count"] for row in held["rejects"].groupBy("reason").count().collect()})
    faults.subtract({row["reason"]: row["count"] for row in part.of(held["rejects"]).groupBy("reason").count().collect()})
    return Outside(rows, +faults, products)


def _check_feed(rows: DataFrame, whole: DataFrame, feed: FeedConfig, outside: Outside) -> None:
    """Refuses a feed without rows, without a column that was named, with too many bad rows, or with no product left.

    `rows` are judged; they and what is `outside` make the `whole` feed.
    """
    found = {
        row["reason"]: row
        for row in rows.groupBy("fault.reason").agg(F.count("*").alias("rows"), F.count_if("kept").alias("kept")).collect()
    }
    num_rows = outside.rows + sum(row["rows"] for row in found.values())
    num_kept = outside.products + sum(row["kept"] for row in found.values())
    if not num_rows:
        where = "".join(f" with {theirs}={value}" for theirs, value in feed.where.items())
        raise JobError(f"feed.uri={feed.uri}: the feed has no rows{where}")
    faults = outside.faults + Counter({reason: row["rows"] for reason, row in found.items() if reason})
    if faults.get("malformed_row") != num_rows:
        _check_columns(rows, whole, feed)
    by_count = sorted(faults.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{reason} {count}" for reason, count in by_count)
    log.info(
        "step=check rows=%d judged=%d rejected=%d %s",
        num_rows,
        num_rows - outside.rows,
        sum(faults.values()),
        pairs(dict(by_count)),
    )
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


def _check_columns(rows: DataFrame, whole: DataFrame, feed: FeedConfig) -> None:
    """Refuses a mapping to a column that no row has, neither of `rows` nor, where they are a part, of the `whole` feed."""
    missing = _unseen(rows, feed.columns)
    if missing:
        missing = _unseen(transforms.parsed(whole, feed), missing)
    for ours, theirs in missing.items():
        names = whole.limit(1000).select(F.explode(F.json_object_keys("raw")).alias("name")).distinct().orderBy("name")
        raise JobError(
            f"feed.columns.{ours}={theirs}: no such column in {feed.uri}; its columns are "
            f"{', '.join(row['name'] for row in names.limit(50).collect())}"
        )


def _unseen(rows: DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """Those of `columns` (ours: theirs) that none of the parsed rows has."""
    if not columns:
        return {}
    has = {n: F.try_variant_get("row", transforms.json_path(theirs), "variant").isNotNull() for n, theirs in columns.items()}
    seen = rows.select(*(F.max(condition).alias(ours) for ours, condition in has.items())).first()
    return {ours: theirs for ours, theirs in columns.items() if not seen[ours]}


def _check_withdrawn(
    spark: SparkSession, spec: delta.TableSpec, products: DataFrame, part: Part | None, feed: FeedConfig
) -> None:
    """Refuses a feed that would take too much of the catalog away."""
    if not delta.exists(spark, spec.path):
        return
    current = delta.read(spark, spec.path).select("product_id")
    num_current = current.count()
    compared = current if part is None else part.of(current)
    num_withdrawn = compared.join(products.select("product_id"), on="product_id", how="left_anti").count()
    if num_withdrawn > feed.max_withdrawn_frac * num_current:
        raise JobError(
            f"feed.uri={feed.uri}: {num_withdrawn} of {num_current} products of the catalog are not in it, more than "
            f"feed.max_withdrawn_frac={feed.max_withdrawn_frac}; nothing was changed",
            GATE_EXIT_CODE,
        )
    log.info("step=compare products=%d withdrawn=%d", num_current, num_withdrawn)


def _write(checked: Checked) -> CurateResult:
    """Products last: a run that was cut short is made good by the next one, and no product goes without its photos."""
    num_changes, num_rows = {}, {}
    for name, spec in checked.specs.items():
        start = time.perf_counter()
        num_changes[name] = delta.write(checked.spark, spec, checked.rows[name], checked.part_of)
        num_rows[name] = delta.read(checked.spark, spec.path).count()
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
