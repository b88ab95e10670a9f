"""How a session is set up, and what is said when it cannot start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.config import JobError, SparkConfig
from jobs.spark.session import session_settings, spark_session

ROOT = Path(__file__).parents[2]


def test_settings_name_delta_loopback_and_what_was_asked_for_last() -> None:
    settings = session_settings(SparkConfig(settings={"spark.ui.enabled": "true"}), "test")
    assert settings["spark.jars.packages"].startswith("io.delta:delta-spark_4.")
    assert settings["spark.sql.extensions"] == "io.delta.sql.DeltaSparkSessionExtension"
    assert settings["spark.driver.bindAddress"] == "127.0.0.1"
    assert settings["spark.ui.enabled"] == "true"
    assert "spark.driver.host" not in session_settings(SparkConfig(master="spark://host:7077"), "test")


def test_jars_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no delta-spark_.*\.jar there"):
        session_settings(SparkConfig(jars_folder=tmp_path), "test")
    for name in ("delta-spark_4.2_2.13-4.4.0.jar", "delta-storage-4.4.0.jar"):
        (tmp_path / name).touch()
    settings = session_settings(SparkConfig(jars_folder=tmp_path), "test")
    assert "spark.jars.packages" not in settings
    assert len(settings["spark.jars"].split(",")) == 2


def test_the_running_session_is_reused_and_reads_times_as_utc(spark: SparkSession) -> None:
    assert spark_session(SparkConfig(), "other").sparkContext is spark.sparkContext
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"


@pytest.mark.parametrize(
    ("java_home", "master", "message"),
    [("/nowhere", "local[1]", "no Java found; install Java 17 or newer"), (None, "nonsense", "Master must either be")],
)
def test_a_start_that_fails_says_why_in_one_line(tmp_path: Path, java_home: str | None, master: str, message: str) -> None:
    feed = tmp_path / "feed.jsonl"
    feed.write_text('{"product_id": "a"}\n')
    tables = [f"store.root={tmp_path}", f"store.tables={tmp_path}", f"feed.uri={feed}", f"spark.master={master}"]
    flags = [part for override in tables for part in ("--set", override)]
    command = [sys.executable, "-m", "jobs.curate_catalog", "--conf", str(ROOT / "conf" / "local.yaml"), *flags]
    environment = {**os.environ, "JAVA_HOME": java_home} if java_home else dict(os.environ)
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: Spark did not start") and message in ended.stderr
    assert ended.stderr.count("\n") == 1 and not ended.stdout
