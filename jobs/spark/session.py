"""A Spark session with Delta, quiet, on loopback when it is local.

The JVM is started here rather than by the session builder, so that its own output (resolver report, incubator and
native-library warnings, log4j's first lines) goes to `spark.log_file` and not over the job's lines.
"""

import os
import sys
import tempfile
from pathlib import Path
from subprocess import STDOUT
from typing import IO, Any

import pyspark
from delta.pip_utils import configure_spark_with_delta_pip
from py4j.java_gateway import JavaGateway  # type: ignore[import-untyped]
from py4j.protocol import Py4JError, Py4JJavaError  # type: ignore[import-untyped]
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from jobs.config import JobError, SparkConfig

NO_JAVA = "no Java found; install Java 17 or newer, or point JAVA_HOME at it"
OLD_JAVA = "this Java is too old; install Java 17 or newer, or point JAVA_HOME at it"

# What the JVM's output says when it does not come up -> what to do about it.
START_HINTS = {
    "JAVA_HOME is not set": NO_JAVA,
    "bin/java: No such file": NO_JAVA,
    "UnsupportedClassVersionError": OLD_JAVA,
    "Unrecognized option": OLD_JAVA,
    "unresolved dependenc": (
        "Delta's jars could not be fetched from Maven Central; allow that, or put the jars of delta-spark and "
        "delta-storage into a folder and set spark.jars_folder to it"
    ),
}


def spark_session(config: SparkConfig, app: str) -> SparkSession:
    """The running session, or a new one with Delta. Raises JobError when Java or Delta's jars are missing."""
    if SparkContext._active_spark_context is None:
        # What executors run group_duplicates with; PySpark by itself takes whatever python3 they find, and reads no setting.
        python = os.environ.get("PYSPARK_PYTHON", sys.executable)
        os.environ["PYSPARK_PYTHON"] = config.settings.get("spark.pyspark.python", python)
        conf = SparkConf()
        for key, value in session_settings(config, app).items():
            conf.set(key, value)
        gateway = SparkContext._gateway or _start_jvm(conf, config.log_file)  # a stopped session leaves its JVM behind
        try:
            SparkContext(conf=conf, gateway=gateway)
        except (Py4JError, PySparkException) as error:
            raise JobError(f"Spark did not start with spark.master={config.master}: {one_line(error)}") from error
    return SparkSession.builder.getOrCreate()


def stop_spark() -> None:
    """Stops the running session, if there is one."""
    if SparkContext._active_spark_context is not None:
        SparkSession.builder.getOrCreate().stop()


def session_settings(config: SparkConfig, app: str) -> dict[str, str]:
    """Every Spark setting of a session, `spark.settings` of the configuration last."""
    settings = {
        "spark.app.name": app,
        "spark.master": config.master,
        "spark.driver.memory": config.driver_memory,
        "spark.sql.shuffle.partitions": str(config.shuffle_partitions),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        **_delta_jars(config.jars_folder),
    }
    if config.master.startswith("local"):
        settings |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.databricks.delta.snapshotPartitions": "2",  # 50 by default, each a task
            # A local run ends before the second compiler pays: start, first run and rerun of curate_catalog on 547 rows took
            # 60 CPU seconds with the first alone, 93 with both. For millions of rows take it back in spark.settings.
            # With one compiler Java sets 48 MB aside for compiled code, which the queries of some thirty nights in one process
            # fill: "Out of space in CodeCache for adapters". 240 MB is its own choice with both.
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
        }
    return settings | config.settings


def one_line(error: Exception) -> str:
    """The first line of an error, without the JVM's class names and stack."""
    if isinstance(error, Py4JJavaError):
        return str(error.java_exception.toString()).splitlines()[0]
    return str(error).strip().splitlines()[0]


def _delta_jars(folder: Path | None) -> dict[str, str]:
    """From a folder of jars, or the Maven package that matches the installed pyspark and delta-spark."""
    if folder is None:
        builder: Any = configure_spark_with_delta_pip(SparkSession.Builder())
        return dict(builder._options)
    jars = sorted(folder.glob("*.jar"))
    if not any(jar.name.startswith("delta-spark") for jar in jars):
        version = ".".join(pyspark.__version__.split(".")[:2])
        raise JobError(f"spark.jars_folder={folder}: no delta-spark_{version}_2.13-*.jar there; put Delta's jars into it")
    return {"spark.jars": ",".join(str(jar.resolve()) for jar in jars)}


def _start_jvm(conf: SparkConf, log_file: Path | None) -> JavaGateway:
    """Starts the JVM with its output in `log_file` (none: dropped). Raises JobError with the reason found there."""
    with _open_log(log_file) as log:
        start = log.tell()
        try:
            return launch_gateway(conf, {"stdout": log, "stderr": STDOUT})
        except PySparkException as error:
            log.seek(start)
            output = log.read().decode(errors="replace")
            raise JobError(f"Spark did not start: {_start_fault(output)}") from error


def _start_fault(output: str) -> str:
    """What to do, or else what the JVM said: the first line that names an exception, or the last line."""
    for sign, hint in START_HINTS.items():
        if sign in output:
            return hint
    lines = output.strip().splitlines() or ["no output"]
    return next((line for line in lines if "Exception" in line), lines[-1]).strip()


def _open_log(log_file: Path | None) -> IO[bytes]:
    if log_file is None:
        return tempfile.TemporaryFile()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    return log_file.open("a+b")
