"""Delta tables of Spark: made with their limits, and merged only where the content changed."""

from collections.abc import Mapping
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

# Ray reads these tables, hence no deletion vectors (and no column mapping, which is off by default). Old files outlive the
# releases that name an old version: VACUUM keeps a month.
PROPERTIES = {
    "delta.enableChangeDataFeed": "true",
    "delta.enableDeletionVectors": "false",
    "delta.deletedFileRetentionDuration": "interval 30 days",
}
CHANGE = "_change"


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


def write(spark: SparkSession, spec: TableSpec, rows: DataFrame) -> int:
    """Makes the table equal to `rows` (unique in the keys) with one commit of the rows that differ; how many those are.

    No difference: no new version.
    """
    _ensure(spark, spec)
    current = read(spark, spec.path)
    if current.isEmpty():
        if rows.isEmpty():
            return 0
        rows.write.format("delta").mode("append").save(spec.path)
        return int(read(spark, spec.path).count())  # from the log, no row is read
    changed = differences(current, rows, spec.keys).persist()
    num_changes: dict[str, int] = {row[CHANGE]: row["count"] for row in changed.groupBy(CHANGE).count().collect()}
    if num_changes:
        columns = {name: f"s.{name}" for name in rows.columns}
        same_key = " AND ".join(f"t.{key} = s.{key}" for key in spec.keys)
        values = changed.join(rows, on=list(spec.keys), how="left")
        merge = DeltaTable.forPath(spark, spec.path).alias("t").merge(values.alias("s"), same_key)
        if num_changes.keys() != {"insert"}:  # Delta merges inserts alone without looking for rows to rewrite
            merge = merge.whenMatchedDelete(condition=f"s.{CHANGE} = 'delete'").whenMatchedUpdate(set=columns)
        merge.whenNotMatchedInsert(values=columns).execute()
    changed.unpersist()
    return sum(num_changes.values())


def count_differences(spark: SparkSession, spec: TableSpec, rows: DataFrame) -> int:
    """How many rows `write` would insert, update or delete."""
    if not exists(spark, spec.path):
        return int(rows.count())
    return int(differences(read(spark, spec.path), rows, spec.keys).count())


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
