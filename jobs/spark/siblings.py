"""Siblings, products of one group_id, else of one brand and title, with the embedding of their first photo."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.spark.catalog_faults import first_photos

SIBLINGS = ("style", "product_id", "title", "color", "image_uri", "image_id", "embedding")


def siblings(catalog: DataFrame, features: DataFrame) -> DataFrame:
    """Rows of SIBLINGS, a style's rows one after the other; products without a sibling are left out."""
    by_title = F.when(F.col("brand").isNotNull(), F.concat(F.lower("brand"), F.lit("\n"), F.lower("title")))
    style = F.coalesce(F.concat(F.lit("group\n"), "group_id"), by_title)
    photos = first_photos(catalog).withColumn("style", style).where("style is not null")
    several = photos.withColumn("size", F.count("*").over(Window.partitionBy("style"))).where("size > 1")
    vectors = features.where("crop = 0").select("image_id", "embedding")
    rows = several.join(vectors, on="image_id", how="inner").repartition("style")
    return rows.sortWithinPartitions("style", "product_id").select(*SIBLINGS)
