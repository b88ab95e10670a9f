"""The whole job on small feeds of every format: what lands in the tables, what is refused, and that a rerun changes nothing."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from jobs.config import Config, JobError
from jobs.curate_catalog import CurateResult, run
from jobs.inserts_read import inserts_read
from serve.index.inserts import EMPTY, INSERTS, Row

TABLES = ("listings", "rejects", "products", "images")


def product(name: str, **more: Any) -> dict[str, Any]:
    return {"product_id": name, "title": name.title(), "image_uri": f"{name}.jpg", "price": 5, "currency": "EUR", **more}


def write_feed(folder: Path, rows: list[dict[str, Any] | str], name: str = "feed.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def config_of(tmp_path: Path, **feed: Any) -> Config:
    """The job's settings with `feed` as its section."""
    return Config.model_validate(
        {
            "store": {"root": tmp_path / "store", "tables": str(tmp_path / "tables")},
            "registry": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
            "bundle": {"path": "none"},
            "feed": {key: str(value) if key == "uri" else value for key, value in feed.items()},
        }
    )


def table(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = DeltaTable(str(tmp_path / "tables" / name)).to_pyarrow_table().to_pylist()
    return rows


def by_id(tmp_path: Path) -> dict[str, dict[str, Any]]:
    return {row["product_id"]: row for row in table(tmp_path, "products")}


def uris(tmp_path: Path, product_id: str) -> list[str]:
    rows = [row for row in table(tmp_path, "images") if row["product_id"] == product_id]
    return [row["image_uri"] for row in sorted(rows, key=lambda row: row["position"])]


def versions(tmp_path: Path) -> list[int]:
    return [DeltaTable(str(tmp_path / "tables" / name)).version() for name in TABLES]


@pytest.mark.slow
def test_feed_of_images_its_rerun_and_its_next_night(spark: SparkSession, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [
        product("boot", image_uri="a b.jpg", category=["Shoes", "Boots"], gender="Women's", stock=0),
        product("boot", image_uri="boot-2.jpg", category=["Shoes", "Boots"], gender="Women's", stock=0),
        product("hat", image_uris=["https://cdn/h.jpg", "hat.jpg"], updated_at="2026-01-01"),
        product("sock"),
        product("sock"),
    ]
    config = config_of(tmp_path, uri=write_feed(tmp_path / "shop", rows))
    assert run(config) == CurateResult(listings=4, rejects=0, products=3, images=5, changed=True)
    assert uris(tmp_path, "boot") == [f"file://{tmp_path}/shop/a%20b.jpg", f"file://{tmp_path}/shop/boot-2.jpg"]
    assert uris(tmp_path, "hat") == [f"file://{tmp_path}/shop/hat.jpg", "https://cdn/h.jpg"]  # image_uri before image_uris
    boot = by_id(tmp_path)["boot"]
    assert {key: boot[key] for key in ("title", "category", "price", "currency", "available", "stock", "gender")} == {
        "title": "Boot",
        "category": "Shoes/Boots",
        "price": 5.0,
        "currency": "EUR",
        "available": False,
        "stock": 0,
        "gender": "women",
    }
    for name in TABLES:
        protocol = DeltaTable(str(tmp_path / "tables" / name)).protocol()
        assert not protocol.reader_features
        assert not {"deletionVectors", "columnMapping"} & set(protocol.writer_features or ())

    before = versions(tmp_path)
    assert not run(config).changed
    assert versions(tmp_path) == before

    write_feed(tmp_path / "shop", [*rows[:2], product("hat", deleted=True), product("sock", price=7), product("cap")])
    assert run(config) == CurateResult(listings=5, rejects=0, products=3, images=4, changed=True)
    assert sorted(by_id(tmp_path)) == ["boot", "cap", "sock"]
    assert by_id(tmp_path)["boot"] == boot
    assert by_id(tmp_path)["sock"]["price"] == 7.0


BAD_ROWS: list[tuple[str, str, dict[str, Any] | str]] = [
    ("malformed_row", "row={not json", "{not json"),
    ("malformed_row", "row=[1, 2]", "[1, 2]"),
    ("missing_product_id", "product_id=none", {"title": "x", "image_uri": "x.jpg"}),
    ("missing_title", "title=none", product("a", title=" ")),
    ("no_image", "image_uri=none", product("b", image_uri=None)),
    ("bad_scheme", "image_uri=ftp://x/y.jpg", product("c", image_uri="ftp://x/y.jpg")),
    ("bad_host", "image_uri=https://evil/y.jpg", product("c2", image_uris=["https://cdn.shop/y.jpg", "https://evil/y.jpg"])),
    ("bad_price", "price=-1", product("d", price=-1)),
    ("unknown_currency", "currency=DOGE", product("e", currency="doge")),
    ("unknown_currency", "currency=none", product("f", currency=None)),
    ("broken_category", "category=a//b", product("g", category="a//b")),
    ("bad_timestamp", "updated_at=soon", product("h", updated_at="soon")),
    ("bad_flag", "available=perhaps", product("i", available="perhaps")),
    ("bad_stock", "stock=some", product("j", stock="some")),
    ("bad_popularity", "popularity=high", product("k", popularity="high")),
]


def test_every_rule_names_the_row_and_the_rest_goes_on(spark: SparkSession, tmp_path: Path) -> None:
    duplicates: list[dict[str, Any] | str] = [
        product("old", price=1, updated_at="2026-01-01"),
        product("old", price=2, updated_at="2026-01-02"),
        product("first", brand="A"),
        product("first", brand="B"),
        product("gone", updated_at="2026-01-02"),
        {"product_id": "gone", "deleted": "yes", "updated_at": "2026-01-02"},
        {"product_id": "back", "deleted": "yes", "updated_at": "2026-01-01"},
        product("back", updated_at="2026-01-02"),
    ]
    feed = write_feed(tmp_path / "shop", [*(row for _, _, row in BAD_ROWS), *duplicates])
    result = run(config_of(tmp_path, uri=feed, max_reject_frac=0.9, hosts=["cdn.shop"]))
    assert result == CurateResult(listings=23, rejects=17, products=3, images=3, changed=True)
    rejects = {row["raw"]: (row["reason"], row["detail"]) for row in table(tmp_path, "rejects")}
    for reason, detail, row in BAD_ROWS:
        raw = json.dumps({"malformed": row}, separators=(",", ":")) if isinstance(row, str) else json.dumps(row)
        assert rejects.pop(raw) == (reason, detail)
    assert sorted(rejects.values()) == [("conflicting_duplicate", "brand=B"), ("conflicting_duplicate", "price=1.0")]
    found = by_id(tmp_path)
    assert sorted(found) == ["back", "first", "old"]
    assert (found["old"]["price"], found["first"]["brand"]) == (2.0, "A")


def test_csv_with_mapped_columns_quotes_and_a_short_row(spark: SparkSession, tmp_path: Path) -> None:
    feed = tmp_path / "shop.csv"
    feed.write_text(
        "id,name,link,additional images,price,kind\n"
        'a1,"Red, ""big""\nhat",a.jpg,"b.jpg|https://cdn/c.jpg",15.00 usd,Apparel > Hats\n'
        "a2,Sock,s.jpg,,3,\n"
        "a3,short\n"
    )
    columns = {"product_id": "id", "title": "name", "image_uri": "link", "image_uris": "additional images", "category": "kind"}
    config = config_of(tmp_path, uri=feed, columns=columns, defaults={"currency": "EUR"}, max_reject_frac=0.5)
    assert run(config) == CurateResult(listings=3, rejects=1, products=2, images=4, changed=True)
    found = by_id(tmp_path)
    assert (found["a1"]["title"], found["a1"]["category"], found["a1"]["currency"]) == ('Red, "big"\nhat', "Apparel/Hats", "USD")
    assert uris(tmp_path, "a1") == [f"file://{tmp_path}/a.jpg", f"file://{tmp_path}/b.jpg", "https://cdn/c.jpg"]
    assert [(row["reason"], row["detail"]) for row in table(tmp_path, "rejects")] == [("malformed_row", "row=a3,short")]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_tables_with_nested_columns_and_a_filter(spark: SparkSession, tmp_path: Path, form: str) -> None:
    rows = spark.sql(
        "SELECT 7L, named_struct('title', 'Hat'), array('a.jpg', 'b.jpg'), 2.50, TIMESTAMP '2026-01-01 00:00:00', 'de' "
        "UNION ALL SELECT 8L, named_struct('title', 'Cap'), array('c.jpg'), 3.50, null, 'fr'"
    )
    rows.toDF("sku", "texts", "photos", "price", "seen", "site").write.format(form).save(str(tmp_path / "feed"))
    columns = {"product_id": "sku", "title": "texts.title", "image_uris": "photos", "updated_at": "seen"}
    config = config_of(tmp_path, uri=tmp_path / "feed", columns=columns, defaults={"currency": "EUR"}, where={"site": "de"})
    assert run(config) == CurateResult(listings=1, rejects=0, products=1, images=2, changed=True)
    hat = by_id(tmp_path)["7"]
    assert (hat["title"], hat["price"], hat["updated_at"].isoformat()) == ("Hat", 2.5, "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"uri": ""}, "feed.uri is not set"),
        ({"uri": "missing.jsonl"}, "does not exist"),
        ({"uri": "empty.jsonl"}, "the feed has no rows"),
        ({"uri": "readme.txt"}, "no file with a known suffix"),
        ({"uri": "good.jsonl", "where": {"site": "de"}}, "the feed has no rows with site=de"),
        ({"uri": "bad.jsonl"}, r"4 of 4 rows are bad \(bad_price 3, no_image 1\).*nothing was changed"),
        ({"uri": "bad.jsonl", "max_reject_frac": 1.0}, "no product left of 4 rows"),
        ({"uri": "good.jsonl", "columns": {"title": "name"}}, "feed.columns.title=name: no such column.*product_id, title"),
        ({"uri": "good.jsonl", "columns": {"colour": "c"}}, "feed.columns.colour: no such column; allowed are"),
        ({"uri": "other.jsonl"}, "2 of 2 products of the catalog are not in it.*nothing was changed"),
    ],
)
def test_refused_in_one_line_with_nothing_changed(spark: SparkSession, shop: Path, feed: dict[str, Any], message: str) -> None:
    before = versions(shop)
    config = config_of(shop, **{**feed, "uri": shop / feed["uri"] if feed["uri"] else ""})
    with pytest.raises(JobError, match=message) as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert versions(shop) == before


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a curated catalog of two products, and feeds that cannot replace it."""
    folder = tmp_path_factory.mktemp("shop")
    feed = write_feed(folder, [product("a"), product("b")], "good.jsonl")
    write_feed(folder, [product("c")], "other.jsonl")
    write_feed(folder, [*(product(f"x{i}", price="?") for i in range(3)), product("y", image_uri="")], "bad.jsonl")
    (folder / "empty.jsonl").touch()
    (folder / "readme.txt").touch()
    run(config_of(folder, uri=feed))
    return folder


@pytest.mark.slow
def test_real_catalog_of_images(spark: SparkSession, tmp_path: Path, shared_data: Path) -> None:
    feed = {"columns": {"image_uri": "path", "category": "category_path"}, "defaults": {"currency": "USD"}}
    config = config_of(tmp_path, uri=shared_data / "luma-catalog" / "manifest.jsonl", **feed)
    assert run(config) == CurateResult(listings=547, rejects=0, products=354, images=547, changed=True)
    assert all(row["available"] for row in table(tmp_path, "products"))


@pytest.mark.slow
def test_real_catalog_inside_a_larger_manifest(spark: SparkSession, tmp_path: Path, shared_data: Path) -> None:
    feed = {"columns": {"image_uri": "path", "category": "category_path"}, "where": {"domain": "catalog"}}
    config = config_of(tmp_path, uri=shared_data / "grocery-store" / "manifest.jsonl", **feed)
    assert run(config) == CurateResult(listings=81, rejects=0, products=81, images=81, changed=True)


def change(kind: str, product_id: str, at: int, uri: str | None = "file:///kept/x.jpg", **more: Any) -> Row:
    crops = None if uri is None else [{"position": 0, "image_uri": uri, "image_id": "ab", "crop": 0, "embedding": b"\0"}]
    told = {"title": product_id.title(), "available": True, **more}
    return {**EMPTY, **told, "product_id": product_id, "at": at, "kind": kind, "bundle_digest": "b", "crops": crops}


@pytest.mark.slow
def test_what_came_over_http_is_laid_over_the_feed(spark: SparkSession, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [
        product("plain"),
        product("hat"),
        product("shoe"),
        product("late", updated_at="2030-01-01"),
    ]
    rows += [product("gone"), product("back", updated_at="2030-01-01")]
    config = config_of(tmp_path, uri=write_feed(tmp_path / "feed", rows), max_withdrawn_frac=1.0)
    assert run(config).products == 6 and inserts_read(config.store) is None
    at = 1_790_000_000_000_000  # in 2026
    changes = [
        change("put", "new", at, price=3.0, currency="EUR"),
        change("put", "brief", at),
        change("delete", "brief", at + 1, None),
        change("put", "hat", at, "file:///kept/hat.jpg"),
        change("change", "shoe", at, "file:///feed/shoe.jpg", price=7.5, currency="EUR", stock=0, available=False),
        change("change", "late", at, price=1.0, currency="EUR"),
        change("delete", "gone", at, None),
        change("delete", "back", at, None),
    ]
    path = str(tmp_path / "tables" / "inserts")
    DeltaTable.create(path, INSERTS)
    write_deltalake(path, pa.Table.from_pylist(changes, schema=INSERTS), mode="append")
    assert run(config).changed and inserts_read(config.store) == 1
    found = by_id(tmp_path)
    assert sorted(found) == ["back", "hat", "late", "new", "plain", "shoe"]
    assert found["new"]["price"] == 3.0 and uris(tmp_path, "new") == ["file:///kept/x.jpg"]
    assert uris(tmp_path, "hat") == ["file:///kept/hat.jpg"], "the photo took the place of the feed's"
    assert (found["shoe"]["price"], found["shoe"]["available"], found["late"]["price"]) == (7.5, False, 5.0)
    assert table(tmp_path, "rejects") == []
    before = versions(tmp_path)
    assert not run(config).changed and versions(tmp_path) == before
    write_feed(tmp_path / "feed", [product("plain")])
    run(config)
    assert sorted(by_id(tmp_path)) == ["hat", "new", "plain"], "a change of attributes alone keeps nothing that left the feed"
