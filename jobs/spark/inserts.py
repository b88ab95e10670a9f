"""Changes that came over HTTP, from the table `inserts` to rows like those of a feed."""

import json
from collections.abc import Iterable
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import FeedConfig
from jobs.spark import transforms
from serve.index.inserts import DELETE, PUT, Row, moment, newest

CHANGES = "raw STRING, place STRUCT<file: STRING, start: BIGINT, row: BIGINT>"


def judged_changes(spark: SparkSession, rows: Iterable[Row], config: FeedConfig) -> DataFrame:
    """One judged row a product, see transforms.judged, and `stands_alone`: it was put with a photo since it was deleted last."""
    plain = FeedConfig(schemes=config.schemes, hosts=config.hosts, buckets=config.buckets)  # these rows have our own names
    rows = sorted(rows, key=lambda row: row["at"])
    alone: dict[str, bool] = {}
    for row in rows:
        product_id, kind = row["product_id"], row["kind"]
        alone[product_id] = kind == PUT or (kind != DELETE and alone.get(product_id, False))
    said = [(json.dumps(listing_of(row), ensure_ascii=False), ("inserts", 0, row["at"])) for row in newest(rows).values()]
    judged = transforms.judged(transforms.parsed(spark.createDataFrame(said, CHANGES), plain), plain, "file:///")
    ids = [product_id for product_id, stands in alone.items() if stands]
    return judged.withColumn("stands_alone", F.col("product.product_id").isin(ids))


def listing_of(row: Row) -> dict[str, Any]:
    """A row of `inserts` as a row of a feed with our own column names."""
    uris = {crop["position"]: crop["image_uri"] for crop in row["crops"] or ()}
    told = {name: value for name, value in row.items() if name in transforms.TEXT_COLUMNS and value is not None}
    more = {"updated_at": moment(row["at"]).isoformat(), "deleted": row["kind"] == DELETE}
    return {**told, **more, "image_uris": [uris[position] for position in sorted(uris)]}
