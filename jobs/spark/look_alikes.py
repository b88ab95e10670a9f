"""Siblings, variants of one style, whose first photos have nearly one embedding: visual search cannot tell them apart.

Products of one group_id are siblings, else those of one brand and title. Spark SQL knows no half-precision floats, so their bits
are taken apart here; a Python function would do it faster, but then executors would need this project's Python.
"""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.spark.catalog_faults import fault, first_photos, shown_as

MAX_SIBLINGS = 100  # of one style are compared, in the order of product_id: what a style of thousands may cost


def look_alikes(catalog: DataFrame, features: DataFrame, min_cosine: float) -> DataFrame:
    """Pairs of siblings, each product with the one that it is nearest to, from `min_cosine` on; equal photos are no pair."""
    by_title = F.when(F.col("brand").isNotNull(), F.concat(F.lower("brand"), F.lit("\n"), F.lower("title")))
    style = F.coalesce(F.concat(F.lit("group\n"), "group_id"), by_title)
    photos = first_photos(catalog).withColumn("style", style).where("style is not null")
    place = F.row_number().over(Window.partitionBy("style").orderBy("product_id"))
    several = photos.withColumn("place", place).where(F.col("place") <= MAX_SIBLINGS)
    vectors = features.where("crop = 0").select("image_id", halves(F.col("embedding")).alias("vector"))
    shown = shown_as(*(F.col(name) for name in ("product_id", "title", "image_uri", "color"))).alias("of")
    siblings = several.select("style", "product_id", "image_id", shown).join(vectors, on="image_id", how="inner")
    one, other = siblings.alias("one"), siblings.alias("other")
    apart = (F.col("one.product_id") < F.col("other.product_id")) & (F.col("one.image_id") != F.col("other.image_id"))
    cosine = dot(F.col("one.vector"), F.col("other.vector"))
    compared = one.join(other, on=(F.col("one.style") == F.col("other.style")) & apart, how="inner").select(
        F.col("one.of").alias("of_one"), F.col("other.of").alias("of_other"), cosine.alias("cosine")
    )
    near = compared.where(F.col("cosine") >= min_cosine)
    of_two = F.explode(F.array("of_one.product_id", "of_other.product_id")).alias("product_id")
    partners = near.select(of_two, F.struct("cosine", "of_one", "of_other").alias("pair"))
    nearest = partners.groupBy("product_id").agg(F.max_by("pair", "pair.cosine").alias("pair")).select("pair.*").distinct()
    return fault(
        nearest.withColumn("shown", F.array("of_one", "of_other")),
        "look_alikes",
        kind=F.lit("pairs"),
        weight=F.col("cosine"),
        key=F.concat_ws(" ", "of_one.product_id", "of_other.product_id"),
        told=F.format_string("cosine %.4f", "cosine"),
    )


def dot(one: Column, other: Column) -> Column:
    """Inner product of two arrays."""
    return F.aggregate(F.zip_with(one, other, lambda x, y: x * y), F.lit(0.0), lambda total, product: total + product)


def halves(embedding: Column) -> Column:
    """Little-endian IEEE 754 half-precision bytes as an array of doubles."""
    powers = F.array(*(F.lit(2.0 ** (max(exponent, 1) - 25)) for exponent in range(32)))

    def value(place: Column) -> Column:
        bits = F.conv(F.hex(F.substring(embedding, place * 2 + 1, F.lit(2))), 16, 10).cast("int")  # low byte first
        high, low = bits.bitwiseAND(255), F.shiftright(bits, 8)
        exponent = F.shiftright(high, 2).bitwiseAND(31)
        hidden = F.when(exponent == 0, 0).otherwise(1024)
        mantissa = hidden + high.bitwiseAND(3) * 256 + low
        return F.when(high >= 128, -1.0).otherwise(1.0) * mantissa * F.get(powers, exponent)

    return F.transform(F.sequence(F.lit(0), F.shiftright(F.octet_length(embedding), 1) - 1), value)
