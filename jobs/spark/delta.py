"""Delta tables of Spark: made with their limits, and merged only where the content changed."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from serve.index.manifest import LOG_IS_KEPT

# Ray reads these tables, hence no deletion vectors (and no column mapping, which is off by default). Old files outlive the
# releases that name an old version: VACUUM keeps a month.
PROPERTIES = {
    "delta.enableChangeDataFeed": "true",
    "delta.enableDeletionVectors": "false",
    "delta.deletedFileRetentionDuration": "interval 30 days",
    **LOG_IS_KEPT,
}
CHANGE = "_change"
LARGE_ROWS = 200_000  # from so many on a table takes new rows by a commit of their own
BROADCAST_ROWS = 100_000  # as many changed rows are sent to every task rather than the table shuffled

PartOf = Callable[[DataFrame], DataFrame]  # the rows of a table that belong to a part of the catalog


@dataclass(frozen=True)
class TableSpec:
    """A table that Spark writes: where, which columns (DDL), which of them tell rows apart, which limits hold (name: SQL)."""

    path: str
    ddl: str
    keys: tuple[str, ...]
    checks: Mapping[str, str]


def exists(spark: SparkSession, path: str) -> bool:
    """Whether a Delta table lies at `path`."""
    return bool(DeltaTable.isDeltaTable(spark, path))


def read(spark: SparkSession, path: str, version: int | None = None) -> DataFrame:
    """The table at `path`, at exactly `version` (none = the newest)."""
    reader = spark.read.format("delta")
    return (reader if version is None else reader.option("versionAsOf", version)).load(path)


def write(spark: SparkSession, spec: TableSpec, rows: DataFrame, part: PartOf | None = None) -> int:
    """Makes the table, or that `part` of it, equal to `rows` (unique in the keys); how many rows differed.

    One commit; of a large table one for the new rows and the next for the others, as Delta shuffles all of a table that it
    both inserts into and updates. No difference: no new version.
    """
    _ensure(spark, spec)
    current = read(spark, spec.path)
    if current.isEmpty():
        if rows.isEmpty():
            return 0
        rows.write.format("delta").mode("append").save(spec.path)
        return int(read(spark, spec.path).count())  # from the log, no row is read
    changed = differences(part(current) if part else current, rows, spec.keys).persist()
    num_changes: dict[str, int] = {row[CHANGE]: row["count"] for row in changed.groupBy(CHANGE).count().collect()}
    steps = ({"insert"}, {"update", "delete"}) if current.count() >= LARGE_ROWS else ({"insert", "update", "delete"},)
    for step in steps:
        if kinds := num_changes.keys() & step:
            _merge(spark, spec, changed.where(F.col(CHANGE).isin(*kinds)), rows, kinds, sum(num_changes[kind] for kind in kinds))
    changed.unpersist()
    return sum(num_changes.values())


def _merge(spark: SparkSession, spec: TableSpec, changed: DataFrame, rows: DataFrame, kinds: Set[str], num_rows: int) -> None:
    """One commit of `changed` keys, so many and of these `kinds`; their values are in `rows`."""
    columns = {name: f"s.{name}" for name in rows.columns}
    same_key = " AND ".join(f"t.{key} = s.{key}" for key in spec.keys)
    values = changed.join(rows, on=list(spec.keys), how="left")
    if num_rows <= BROADCAST_ROWS:
        values = F.broadcast(values)
    merge = DeltaTable.forPath(spark, spec.path).alias("t").merge(values.alias("s"), same_key)
    if kinds != {"insert"}:  # Delta merges inserts alone without looking for rows to rewrite
        merge = merge.whenMatchedDelete(condition=f"s.{CHANGE} = 'delete'").whenMatchedUpdate(set=columns)
    if "insert" in kinds:
        merge = merge.whenNotMatchedInsert(values=columns)
    merge.execute()


def count_differences(spark: SparkSession, spec: TableSpec, rows: DataFrame, part: PartOf | None = None) -> int:
    """How many rows `write` would insert, update or delete."""
    if not exists(spark, spec.path):
        return int(rows.count())
    current = read(spark, spec.path)
    return int(differences(part(current) if part else current, rows, spec.keys).count())


def differences(current: DataFrame, rows: DataFrame, keys: tuple[str, ...]) -> DataFrame:
    """Keys of the rows that turn `current` into `rows`, each with its CHANGE: insert, update or delete.

    Rows are compared by a hash of 64 bits of what they say beside the keys: the rows themselves would all be shuffled. One update
    in 2 ** 64 goes unseen.
    """
    names = [name for name in rows.columns if name not in keys]
    told = [column for name in names for column in (F.col(name), F.col(name).isNull())]  # xxhash64 alone steps over nulls
    old = current.select(*keys, F.xxhash64(*told).alias("old"))
    new = rows.select(*keys, F.xxhash64(*told).alias("new"))
    changed = old.join(new, on=list(keys), how="full_outer").where("NOT old <=> new")
    change = F.when(F.col("old").isNull(), "insert").when(F.col("new").isNull(), "delete").otherwise("update")
    return changed.select(*keys, change.alias(CHANGE))


def _ensure(spark: SparkSession, spec: TableSpec) -> None:
    if exists(spark, spec.path):
        return
    limits = {f"delta.constraints.{name}": sql for name, sql in spec.checks.items()}
    builder = DeltaTable.createIfNotExists(spark).location(spec.path)
    for name, value in (PROPERTIES | limits).items():
        builder = builder.property(name, value)
    builder.addColumns(spark.createDataFrame([], spec.ddl).schema).execute()
