"""Products that name a colour which the signature of none of their photos has. A suspicion: pixels decide (jobs.colours).

A signature (serve.vision.hash) is 4 x 4 cells of mean CIELAB. A cell mixes goods and ground, so a colour counts as seen from half
the chroma on that a pixel needs.
"""

from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType

from jobs.colours import PLAIN, REGIONS, UNJUDGED, WORDS, lies_in
from jobs.spark.catalog_faults import fault, shown_as, usable
from serve.vision.hash import CELLS

BLACK_IN_A_CELL = 15  # lightness that white ground adds to a black thing in its cell
IN_A_CELL = {
    name: replace(region, min_chroma=region.min_chroma / 2, max_lightness=min(100, region.max_lightness + BLACK_IN_A_CELL))
    for name, region in REGIONS.items()
}
MAX_PHOTOS = 8  # of a product; pixels of all are read


def colour_suspects(catalog: DataFrame, features: DataFrame) -> DataFrame:
    """As faults; `kind` lists the families that are named, `shown` every photo of the product (at most MAX_PHOTOS)."""
    signatures = features.where("crop = 0 and colour is not null").select("image_id", "colour")
    named = named_families(F.col("color"), F.col("title")).alias("named")
    naming = usable(catalog).select("product_id", "title", "color", "image_id", "image_uri", "position", named)
    naming = naming.where((F.size("named") > 0) & ~F.array_contains("named", UNJUDGED))
    photos = naming.join(signatures, on="image_id", how="inner").withColumn("seen", sees("colour", "named"))
    says = F.coalesce(F.concat(F.lit("color: "), "color"), F.lit("named in the title"))
    entry = F.struct("position", shown_as(F.col("product_id"), F.col("title"), F.col("image_uri"), says).alias("entry"))
    products = photos.groupBy("product_id").agg(
        F.bool_or("seen").alias("seen"),
        F.first("named").alias("named"),
        F.count("*").alias("num_photos"),
        F.slice(F.sort_array(F.collect_list(entry)), 1, MAX_PHOTOS).alias("entries"),
    )
    suspects = products.where(~F.col("seen")).withColumn("shown", F.col("entries.entry"))
    return fault(
        suspects,
        "colour_differs",
        kind=F.array_join("named", " or "),
        weight=F.col("num_photos"),
        key=F.col("product_id"),
        told=F.concat(F.lit("named: "), F.array_join("named", " or ")),
    )


def named_families(color: Column, title: Column) -> Column:
    """Array of the colours that `color` names, or else the plain words of the title; with UNJUDGED where one is not judged."""
    return F.when(F.length(F.trim(color)) > 0, _families(color, frozenset(WORDS))).otherwise(_families(title, PLAIN))


def _families(text: Column, words: frozenset[str]) -> Column:
    meanings = F.create_map(*chain.from_iterable((F.lit(w), F.array(*map(F.lit, WORDS[w]))) for w in sorted(words)))
    found = F.transform(F.split(F.lower(text), r"[^\p{L}]+"), lambda word: F.try_element_at(meanings, word))
    return F.array_distinct(F.flatten(F.filter(found, lambda families: families.isNotNull())))


@F.arrow_udf(BooleanType())  # type: ignore[untyped-decorator]
def sees(signatures: pa.Array, named: pa.Array) -> pa.Array:
    """Whether a cell of each signature (48 bytes) has one of the named colours."""
    bytes_N48 = np.frombuffer(b"".join(signatures.to_pylist()), np.uint8)
    cells_NC3 = bytes_N48.reshape(-1, CELLS**2, 3) - np.array([0.0, 128.0, 128.0])
    has = {
        name: np.atleast_1d(within_NC.any(axis=1))
        for name, within_NC in zip(IN_A_CELL, lies_in(cells_NC3, IN_A_CELL.values()), strict=True)
    }
    seen = (any(has[name][row] for name in families) for row, families in enumerate(named.to_pylist()))
    return pa.array(seen, pa.bool_())
