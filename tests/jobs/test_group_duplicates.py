"""The whole job on a features table as the embedding job writes it."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from jobs.config import Config, JobError
from jobs.group_duplicates import DuplicatesResult, regroup
from jobs.tables import FEATURES


def config_of(tmp_path: Path) -> Config:
    return Config.model_validate(
        {
            "store": {"root": tmp_path / "store", "tables": str(tmp_path / "tables")},
            "registry": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
            "bundle": {"path": "none"},
        }
    )


def add_features(tmp_path: Path, hashes: dict[str, int], quality: float = 90.0, bundle: str = "b1") -> None:
    """Crop 0 of every image with its hash, and a second crop without."""
    rest = {"x0": 0.0, "y0": 0.0, "x1": 9.0, "y1": 9.0, "width": 9, "height": 9, "score": 1.0, "embedding": b"\0\0"}
    rows: list[dict[str, Any]] = []
    for name, value in hashes.items():
        row = {"image_id": name, "bundle_digest": bundle, **rest}
        rows += [{**row, "crop": 0, "hash": value.to_bytes(32, "big"), "hash_quality": quality}, {**row, "crop": 1}]
    write_deltalake(str(tmp_path / "tables" / "features"), pa.Table.from_pylist(rows, schema=FEATURES), mode="append")


def duplicates(tmp_path: Path) -> DeltaTable:
    return DeltaTable(str(tmp_path / "tables" / "duplicates"))


@pytest.mark.slow
def test_groups_their_rerun_and_a_new_neighbour(spark: SparkSession, tmp_path: Path) -> None:
    rng = random.Random(1)
    shoe, hat, sock = (rng.getrandbits(256) for _ in range(3))
    add_features(tmp_path, {"shoe1": shoe, "shoe2": shoe ^ (2**31 - 1), "shoe3": shoe, "hat": hat, "sock": sock})
    add_features(tmp_path, {"flat1": 0, "flat2": 1}, quality=1.0)
    add_features(tmp_path, {"other": hat}, bundle="b0")
    config = config_of(tmp_path)
    assert regroup(config, "b1") == DuplicatesResult(images=5, grouped=3, groups=1, changed=True)
    rows = sorted(tuple(row.values()) for row in duplicates(tmp_path).to_pyarrow_table().to_pylist())
    assert rows == [("shoe1", "shoe1", 3, 0), ("shoe2", "shoe1", 3, 31), ("shoe3", "shoe1", 3, 0)]

    version = duplicates(tmp_path).version()
    assert not regroup(config, "b1").changed
    assert duplicates(tmp_path).version() == version

    add_features(tmp_path, {"sock2": sock ^ 7})
    assert regroup(config, "b1") == DuplicatesResult(images=6, grouped=5, groups=2, changed=True)
    protocol = duplicates(tmp_path).protocol()
    assert not protocol.reader_features
    assert not {"deletionVectors", "columnMapping"} & set(protocol.writer_features or ())


def test_without_features_it_says_what_to_run(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"run jobs\.embed_images first"):
        regroup(config_of(tmp_path), "b1")
