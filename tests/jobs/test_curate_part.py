"""A night that judges only what may have changed leaves the tables as one that judges the whole feed does."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from jobs.config import Config, JobError
from jobs.curate_catalog import run
from jobs.spark import delta
from serve.index.inserts import INSERTS
from tests.jobs.test_curate_catalog import by_id, change, config_of, product, table, versions, write_feed

AT = 1_790_000_000_000_000  # microseconds, in 2026


def feed_rows(random_: random.Random) -> list[dict[str, Any] | str]:
    """Products of one row, of several rows whose order counts, withdrawn, bad and nameless ones, and what is no JSON."""
    rows: list[dict[str, Any] | str] = [product(f"single-{n}", category="a/b") for n in range(12)]
    for n in range(4):
        rows += [product(f"views-{n}", image_uri=f"{n}-{view}.jpg") for view in range(3)]
    rows += [product("both", price=3), product("both", price=4)]  # the first one counts
    rows += [product("left", deleted=True), product("costly", price=-1), {"title": "nameless", "image_uri": "x.jpg"}, "{not json"]
    random_.shuffle(rows)
    return rows


def another_day(rows: list[dict[str, Any] | str], random_: random.Random) -> list[dict[str, Any] | str]:
    """Some rows dearer, gone, new, healed or broken, and the order drawn anew."""
    new: list[dict[str, Any] | str] = []
    for row in rows:
        chance = random_.random()
        if isinstance(row, str) or chance > 0.3:
            new.append(row)
        elif chance > 0.1:
            new.append({**row, "price": random_.randint(-2, 30)})
        elif chance > 0.05:
            new.append({**row, "deleted": True})
    new += [product(f"new-{random_.random()}"), {"title": f"nameless {random_.random()}"}, f"no json {random_.random()}"]
    random_.shuffle(new)
    return new


def held(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Every table, its rows in an order of their own."""
    names = ("listings", "rejects", "products", "images")
    return {name: sorted(table(tmp_path, name), key=lambda row: json.dumps(row, default=str)) for name in names}


def configs(tmp_path: Path, feed: Path) -> tuple[Config, Config]:
    """The same feed judged in part, and as a whole, into stores of their own."""
    settings = {"uri": feed, "max_reject_frac": 1.0, "max_withdrawn_frac": 1.0}
    part, whole = (
        config_of(tmp_path / name, **settings, part_from_rows=least) for name, least in (("part", 0), ("whole", 10**9))
    )
    return part, whole


def die_after_a_merge(config: Config) -> None:
    """A run that ends between the two commits of its first table."""
    merge, done = delta._merge, []

    def once(*args: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(args)
        merge(*args)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(delta, "_merge", once)
        run(config)


@pytest.mark.slow
def test_the_tables_are_those_of_a_whole_run(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    feed = tmp_path / "feed" / "feed.jsonl"
    part, whole = configs(tmp_path, feed)
    rows = feed_rows(draw)
    for night in range(3):
        write_feed(feed.parent, rows)
        if night == 2:
            for config in (part, whole):
                path = f"{config.store.tables}/inserts"
                DeltaTable.create(path, INSERTS)
                changes = [change("put", "new", AT, price=3.0, currency="EUR"), change("delete", "single-1", AT, None)]
                changes += [change("change", "single-2", AT, price=7.0, currency="EUR"), change("put", "both", AT)]
                write_deltalake(path, pa.Table.from_pylist(changes, schema=INSERTS), mode="append")
        with monkeypatch.context() as patched:
            patched.setattr(delta, "LARGE_ROWS", 0)  # new rows by one commit, the others by the next
            result = run(part)
        assert result == run(whole)
        assert held(tmp_path / "part") == held(tmp_path / "whole")
        rows = another_day(rows, draw)


@pytest.mark.slow
def test_only_what_changed_is_judged_again(spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[dict[str, Any] | str] = [product(f"p{n}", brand="b") for n in range(20)]
    config = config_of(tmp_path, uri=write_feed(tmp_path, rows), part_from_rows=0, columns={"brand": "brand"})
    caplog.set_level("INFO")
    run(config)
    assert "rows=20 judged=20 " in caplog.text
    before = versions(tmp_path)
    caplog.clear()
    assert not run(
        config_of(tmp_path, uri=write_feed(tmp_path, rows[::-1]), part_from_rows=0, columns={"brand": "brand"})
    ).changed
    assert "rows=20 judged=0 " in caplog.text and versions(tmp_path) == before
    caplog.clear()
    write_feed(tmp_path, [product("p0", brand="b", price=6), *rows[1:]])
    assert run(config).changed
    assert "rows=20 judged=1 " in caplog.text
    caplog.clear()
    write_feed(tmp_path, rows)
    run(config_of(tmp_path, uri=tmp_path / "feed.jsonl", part_from_rows=0, columns={"brand": "brand"}, defaults={"seller": "s"}))
    assert "rows=20 judged=20 " in caplog.text, "other settings judge every row otherwise"


def test_a_feed_that_lost_too_much_is_refused_in_part_too(spark: SparkSession, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [product(f"p{n}") for n in range(20)]
    config = config_of(tmp_path, uri=write_feed(tmp_path, rows), part_from_rows=0)
    run(config)
    before = versions(tmp_path)
    write_feed(tmp_path, rows[:8])
    with pytest.raises(JobError, match="12 of 20 products of the catalog are not in it"):
        run(config)
    write_feed(tmp_path, [*rows[:10], *(product(f"p{n}", price=-1) for n in range(10, 20))])
    with pytest.raises(JobError, match=r"10 of 20 rows are bad \(bad_price 10\)"):
        run(config)
    assert versions(tmp_path) == before


@pytest.mark.slow
def test_a_run_that_died_between_two_commits_is_made_good(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any] | str] = [product(f"p{n}") for n in range(6)]
    config = config_of(tmp_path, uri=write_feed(tmp_path, rows), part_from_rows=0)
    run(config)
    write_feed(tmp_path, [product("p0", price=6), *rows[2:], product("new")])
    monkeypatch.setattr(delta, "LARGE_ROWS", 0)
    die_after_a_merge(config)
    assert len(table(tmp_path, "listings")) == 8, "the new rows are in, the old ones not out"
    assert run(config).listings == 6
    found = by_id(tmp_path)
    assert sorted(found) == ["new", "p0", "p2", "p3", "p4", "p5"] and found["p0"]["price"] == 6.0
