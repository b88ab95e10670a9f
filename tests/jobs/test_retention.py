"""What may go of a table's log."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from jobs.retention import trim_log
from jobs.tables import Tables, read_table


def test_logs_are_cut_before_the_oldest_version_that_is_kept(tmp_path: Path) -> None:
    """A kept version is read however old it is; what no kept version needs goes, once it is old enough."""
    tables = Tables(str(tmp_path))
    for number in range(25):
        write_deltalake(tables.path("products"), pa.table({"number": [number]}), mode="append")
        if number in (10, 14, 20):
            DeltaTable(tables.path("products")).create_checkpoint()
    assert trim_log(tables, "products", {17, 24}, min_age_hours=1) == 0, "younger than an hour"
    assert trim_log(tables, "products", {17, 24}, min_age_hours=0) == 14 + 1, "commits 0 to 13 and a checkpoint"
    assert trim_log(tables, "products", {17, 24}, min_age_hours=0) == 0
    for version in (14, 17, 24):
        assert read_table(tables, "products", version=version).num_rows == version + 1
    with pytest.raises(DeltaError):
        read_table(tables, "products", version=13)
    assert trim_log(tables, "products", (), min_age_hours=0) == 6 + 1
    assert read_table(tables, "products").num_rows == 25
