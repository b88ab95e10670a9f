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
GONE = "_gone"


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


def read(spark: SparkSession, path: str) -> DataFrame:
    """The newest version of the table at `path`."""
    return spark.read.format("delta").load(path)


def write(spark: SparkSession, spec: TableSpec, rows: DataFrame) -> int:
    """Makes the table equal to `rows` (unique in the keys) with one MERGE of the rows that differ; how many those are.

    No difference: no new version.
    """
    _ensure(spark, spec)
    changes = differences(read(spark, spec.path), rows, spec.keys).persist()
    num_changes = int(changes.count())
    if num_changes:
        columns = {name: f"s.{name}" for name in rows.columns}
        same_key = " AND ".join(f"t.{key} = s.{key}" for key in spec.keys)
        (
            DeltaTable.forPath(spark, spec.path)
            .alias("t")
            .merge(changes.alias("s"), same_key)
            .whenMatchedDelete(condition=f"s.{GONE}")
            .whenMatchedUpdate(set=columns)
            .whenNotMatchedInsert(values=columns)
            .execute()
        )
    changes.unpersist()
    return num_changes


def count_differences(spark: SparkSession, spec: TableSpec, rows: DataFrame) -> int:
    """How many rows `write` would insert, update or delete."""
    if not exists(spark, spec.path):
        return int(rows.count())
    return int(differences(read(spark, spec.path), rows, spec.keys).count())


def differences(current: DataFrame, rows: DataFrame, keys: tuple[str, ...]) -> DataFrame:
    """The rows to insert, update or delete (GONE) that turn `current` into `rows`."""
    values = F.struct(*rows.columns)
    old = current.select(*keys, values.alias("old"))
    new = rows.select(*keys, values.alias("new"))
    differ = ~F.col("old").eqNullSafe(F.col("new"))
    merged = F.coalesce("new", "old")
    changed = old.join(new, on=list(keys), how="full_outer").where(differ)
    return changed.select(*(merged[name].alias(name) for name in rows.columns), F.col("new").isNull().alias(GONE))


def _ensure(spark: SparkSession, spec: TableSpec) -> None:
    if exists(spark, spec.path):
        return
    limits = {f"delta.constraints.{name}": sql for name, sql in spec.checks.items()}
    builder = DeltaTable.createIfNotExists(spark).location(spec.path)
    for name, value in (PROPERTIES | limits).items():
        builder = builder.property(name, value)
    builder.addColumns(spark.createDataFrame([], spec.ddl).schema).execute()
