"""A stage after every way to be interrupted."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.config import JobError
from jobs.raydata.staging import Plan, Stage, only_run

PENDING = pa.table({"uri": ["a", "b", "c", "d"]})
PLAN = Plan(run_id="r1", tables="t", images_version=3, bundle_digest="d", commit_number=1, num_pending=4)


def rows(*uris: str) -> pa.Table:
    return pa.table({"uri": list(uris), "value": [uri * 2 for uri in uris]})


def test_resume_from_the_last_part(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path, PLAN, PENDING, "uri")
    stage.add(rows("b", "d"))
    (stage.folder / "rows" / ".part-half.parquet").write_bytes(b"PAR1 half a file")  # killed while it wrote
    (resumed,) = Stage.unfinished(tmp_path, "uri")
    assert resumed.plan == PLAN and not resumed.complete
    assert resumed.remaining()["uri"].to_pylist() == ["a", "c"]
    resumed.add(rows("c", "a"))
    resumed.finish()
    assert resumed.complete and resumed.remaining().num_rows == 0
    assert sorted(resumed.rows.to_table()["value"].to_pylist()) == ["aa", "bb", "cc", "dd"]
    resumed.remove()
    assert Stage.unfinished(tmp_path, "uri") == []


@pytest.mark.parametrize("parts", [[("a", "b", "c")], [("a", "b"), ("b", "c", "d")]])
def test_rows_that_do_not_add_up_are_never_complete(tmp_path: Path, parts: list[tuple[str, ...]]) -> None:
    stage = Stage.create(tmp_path, PLAN, PENDING, "uri")
    for part in parts:
        stage.add(rows(*part))
    with pytest.raises(JobError, match="4 rows in"):
        stage.finish()
    assert not stage.complete


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with only_run(tmp_path, "a_job"), pytest.raises(JobError, match="running already"), only_run(tmp_path, "a_job"):
        pass
    with only_run(tmp_path, "a_job"):
        pass


def test_a_dead_run_holds_nothing(tmp_path: Path) -> None:
    lines = ["import os, pathlib", "from jobs.raydata.staging import only_run"]
    lines += [f"with only_run(pathlib.Path({str(tmp_path)!r}), 'a_job'):", "    os._exit(1)"]
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, check=False).returncode == 1
    (tmp_path / ".new-r2").mkdir()
    with only_run(tmp_path, "a_job"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
