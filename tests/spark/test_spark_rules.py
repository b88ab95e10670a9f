"""Each rule on single values, good and bad."""

from collections.abc import Callable
from typing import Any

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from jobs.spark import rules


def applied(spark: SparkSession, rule: Callable[[Column], Column], values: list[str]) -> list[Any]:
    """`rule` of every value."""
    rows = spark.createDataFrame(list(enumerate(values)), "i INT, value STRING")
    return [row["out"] for row in rows.select("i", rule(F.col("value")).alias("out")).orderBy("i").collect()]


def test_one_value_rules(spark: SparkSession) -> None:
    cases: list[tuple[Callable[[Column], Column], dict[str, Any]]] = [
        (rules.amount, {"52": 52.0, "52.00": 52.0, "15.00 USD": 15.0, "0": 0.0, "1e3": 1000.0}),
        (rules.amount, dict.fromkeys(["-1", "NaN", "$5", "1,299.00", "inf", "5d", "1e400"])),
        (rules.flag, {"true": True, "In Stock": True, "0": False, "out_of_stock": False, "maybe": None, "2": None}),
        (rules.count, {"7": 7, "7.0": 7, "-3": 0, "0": 0, "7.5": None, "many": None, "99999999999": None}),
        (rules.number, {"0.25": 0.25, "12": 12.0, "-1": None, "high": None, "NaN": None}),
        (rules.gender, {"Women's": "women", "M": "men", "girls": "kids", "UNISEX": "unisex", "robot": None}),
        (
            lambda uri: rules.is_allowed(uri, ("cdn.shop", "*.img.shop"), ("photos",)),
            {
                "HTTPS://CDN.shop:8443/a.jpg": True,
                "http://a.b.img.shop/a.jpg": True,
                "http://img.shop/a.jpg": False,
                "https://cdn.shop@evil/a.jpg": False,
                "https://evil/cdn.shop": False,
                "s3://photos/a.jpg": True,
                "gs://others/a.jpg": False,
                "file:///a.jpg": True,
            },
        ),
        (lambda uri: rules.is_allowed(uri, (), ()), {"https://any/a.jpg": True, "s3://any/a.jpg": True}),
        (
            rules.scheme,
            {"HTTPS://x": "https", "data:image/png;base64,AA": "data", "a/b.jpg": "", "//cdn/x.jpg": "//", "c:x.jpg": ""},
        ),
    ]
    values = [value for _, expected in cases for value in expected]
    rows = spark.createDataFrame([(value,) for value in values], "value STRING")
    columns = [rule(F.col("value")).alias(f"rule{i}") for i, (rule, _) in enumerate(cases)]
    found = {row["value"]: row for row in rows.select("value", *columns).collect()}
    for i, (rule, expected) in enumerate(cases):
        assert {value: found[value][f"rule{i}"] for value in expected} == expected, rule.__name__


def test_moment_reads_iso_and_epoch(spark: SparkSession) -> None:
    texts = [
        "2026-05-01T10:00:00Z",
        "2026-05-01 12:00:00+02:00",
        "1777629600",
        "1777629600000",
        "2026-05-01 10:00:00",
        "yesterday",
        "12",
    ]
    seconds = applied(spark, lambda text: F.unix_timestamp(rules.moment(text)), texts)
    assert seconds[:5] == [1777629600] * 5
    assert seconds[5] is None


def test_currency_behind_the_price_comes_before_the_column(spark: SparkSession) -> None:
    rows = spark.createDataFrame([("15 eur", None), ("15 eur", "usd"), ("15", "usd"), ("15", None)], "price STRING, code STRING")
    codes = rows.select(rules.currency(F.col("price"), F.col("code")).alias("code")).collect()
    assert [row["code"] for row in codes] == ["EUR", "EUR", "USD", None]


def test_category(spark: SparkSession) -> None:
    cases: list[tuple[list[str] | None, str | None, list[str] | None]] = [
        (["Men", " Tops ", "Shirts/Polos"], None, ["Men", "Tops", "Shirts-Polos"]),
        (None, "Apparel & Accessories > Clothing > Shirts", ["Apparel & Accessories", "Clothing", "Shirts"]),
        (None, "/apparel/shoes/", ["apparel", "shoes"]),
        (None, "apparel//shoes", None),
        (None, "../etc", None),
        (["Men", ""], None, None),
        (['["Men"]'], None, None),
        (None, "/".join("abcdefghijklm"), None),
        (None, None, None),
    ]
    rows = spark.createDataFrame([(i, *case[:2]) for i, case in enumerate(cases)], "i INT, levels ARRAY<STRING>, text STRING")
    found = rows.select("i", rules.category_levels(F.col("levels"), F.col("text")).alias("out")).orderBy("i").collect()
    assert [row["out"] for row in found] == [case[2] for case in cases]


def test_image_uri_of_a_local_feed(spark: SparkSession) -> None:
    uris = {
        "a/b.jpg": "file:///shop/a/b.jpg",
        "./a b%1#.jpg": "file:///shop/a%20b%251%23.jpg",
        "/data/a.jpg": "file:///data/a.jpg",
        "https://cdn/x.jpg?w=1": "https://cdn/x.jpg?w=1",
    }
    assert applied(spark, lambda uri: rules.image_uri(uri, "file:///shop"), list(uris)) == list(uris.values())


def test_image_uri_of_a_feed_in_a_store(spark: SparkSession) -> None:
    assert applied(spark, lambda uri: rules.image_uri(uri, "s3://bucket/feed"), ["a b.jpg"]) == ["s3://bucket/feed/a b.jpg"]
