"""Reads a catalog feed of any format as one form: a row is a JSON object, with its place in the feed.

JSONL lines stay as they came; CSV, Parquet and Delta rows become one JSON object each. Later steps look values up by
JSON path, so nested and list columns need no schema, and a column may change its type from row to row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import FeedConfig, JobError
from jobs.spark.session import one_line

Format = Literal["jsonl", "csv", "parquet", "delta"]

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".bz2", ".zst")

CORRUPT = "_corrupt_row"


@dataclass(frozen=True)
class Source:
    """A feed that was found: what to read, how, and the URI of the folder that relative image paths start from."""

    paths: tuple[str, ...]
    format: Format
    folder: str


def find_feed(spark: SparkSession, config: FeedConfig) -> Source:
    """Looks at `feed.uri`: a file, or a folder with files of one format. Raises JobError when there is nothing to read."""
    if not config.uri:
        raise JobError("feed.uri is not set; name the feed with --set feed.uri=PATH")
    uri = config.uri.rstrip("/") if "://" in config.uri else f"file://{Path(config.uri).expanduser().resolve()}"
    try:
        is_folder, names = _list(spark, uri)
    except Py4JJavaError as error:
        raise JobError(f"feed.uri={config.uri}: {one_line(error)}") from error
    if not is_folder:
        folder, _, name = uri.rpartition("/")
        return Source((uri,), _format_of(config, [name]), _encoded(folder))
    found = "delta" if "_delta_log" in names and config.format == "auto" else _format_of(config, names)
    if found in ("parquet", "delta"):  # their readers know partition folders and the log
        return Source((uri,), found, _encoded(uri))
    return Source(tuple(f"{uri}/{name}" for name in names if suffix_format(name) == found), found, _encoded(uri))


def read_feed(spark: SparkSession, source: Source) -> DataFrame:
    """Rows of the feed as (raw STRING, place STRUCT): `raw` a JSON object, or what could not be read as one.

    `place` orders the rows as the feed has them: file, start of the block in it, row within. Raises JobError.
    """
    try:
        if source.format == "jsonl":
            rows = spark.read.text(list(source.paths))
            raw = F.trim(F.regexp_replace("value", "^\ufeff", ""))
            return rows.select(raw.alias("raw"), _place()).where("raw <> ''")
        if source.format == "csv":
            return _read_csv(spark, source)
        rows = spark.read.format(source.format).load(list(source.paths) if source.format == "parquet" else source.paths[0])
        return rows.select(F.to_json(F.struct("*"), {"ignoreNullFields": "false"}).alias("raw"), _place())
    except PySparkException as error:
        raise JobError(f"feed at {source.paths[0]} cannot be read as {source.format}: {one_line(error)}") from error


def suffix_format(name: str) -> Format | None:
    """The format that a file name's suffix stands for, compression left aside; None when it says nothing."""
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return SUFFIXES.get(Path(name).suffix.lower())


def _read_csv(spark: SparkSession, source: Source) -> DataFrame:
    """A row with too many or too few fields keeps its text in CORRUPT, and that text becomes `raw`."""
    tab = source.paths[0].removesuffix(".gz").endswith(".tsv")
    reader = spark.read.options(header=True, multiLine=True, escape='"', sep="\t" if tab else ",")
    names = reader.csv(source.paths[0]).columns
    if not names:
        raise JobError(f"feed at {source.paths[0]} is empty: not even a header line")
    schema = ", ".join(f"{quoted(name)} STRING" for name in [*names, CORRUPT])
    rows = reader.options(columnNameOfCorruptRecord=CORRUPT, enforceSchema=False).csv(list(source.paths), schema=schema)
    as_json = F.to_json(F.struct(*(F.col(quoted(name)) for name in names)), {"ignoreNullFields": "false"})
    return rows.select(F.coalesce(CORRUPT, as_json).alias("raw"), _place())


def quoted(name: str) -> str:
    """A column name as SQL wants it."""
    return f"`{name.replace('`', '``')}`"


def _place() -> Any:
    """Sorts as the feed does. Files of one reader task come in no promised order, hence file and block first."""
    start = F.col("_metadata.file_block_start")
    return F.struct(
        F.col("_metadata.file_path").alias("file"), start.alias("start"), F.monotonically_increasing_id().alias("row")
    ).alias("place")


def _encoded(folder: str) -> str:
    """Hadoop takes local paths as they are; in a file URI they are percent-encoded."""
    return quote(folder, safe="/:") if folder.startswith("file://") else folder


def _list(spark: SparkSession, uri: str) -> tuple[bool, list[str]]:
    """Whether `uri` is a folder, and the sorted names in it. Raises JobError when it does not exist."""
    jvm: Any = spark._jvm
    path = jvm.org.apache.hadoop.fs.Path(uri)
    system = path.getFileSystem(spark._jsc.hadoopConfiguration())
    if not system.exists(path):
        raise JobError(f"feed.uri: {uri} does not exist; name a file, a folder or a URI")
    if not system.getFileStatus(path).isDirectory():
        return False, []
    return True, sorted(str(status.getPath().getName()) for status in system.listStatus(path))


def _format_of(config: FeedConfig, names: list[str]) -> Format:
    """`feed.format`, or the one format that the names' suffixes stand for."""
    if config.format != "auto":
        return config.format
    found = {form for form in map(suffix_format, names) if form}
    if len(found) != 1:
        seen = f"files of {len(found)} formats" if found else "no file with a known suffix"
        raise JobError(f"feed.uri={config.uri}: {seen}; expected one of {', '.join(SUFFIXES)}, or set feed.format")
    return found.pop()
