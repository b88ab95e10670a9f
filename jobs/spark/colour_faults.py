"""Products that name a colour which the signature of none of their photos has. A suspicion: pixels decide (jobs.colours).

A signature (serve.vision.hash) is 4 x 4 cells of mean CIELAB. A cell mixes goods and ground, so a colour counts as seen from half
the chroma on that a pixel needs.
"""

from functools import partial
from itertools import chain

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.colours import PLAIN, REGIONS, UNJUDGED, WORDS, Region
from jobs.spark.catalog_faults import fault, shown_as, usable
from serve.vision.hash import CELLS

BLACK_IN_A_CELL = 15  # lightness that white ground adds to a black thing in its cell
MAX_PHOTOS = 8  # of a product; pixels of all are read


def colour_suspects(catalog: DataFrame, features: DataFrame) -> DataFrame:
    """As faults; `kind` lists the families that are named, `shown` every photo of the product (at most MAX_PHOTOS)."""
    signatures = features.where("crop = 0 and colour is not null").select("image_id", cells(F.col("colour")).alias("cells"))
    named = named_families(F.col("color"), F.col("title")).alias("named")
    naming = usable(catalog).select("product_id", "title", "color", "image_id", "image_uri", "position", named)
    naming = naming.where((F.size("named") > 0) & ~F.array_contains("named", UNJUDGED))
    photos = naming.join(signatures, on="image_id", how="inner").withColumn("seen", sees(F.col("cells"), F.col("named")))
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


def cells(signature: Column) -> Column:
    """The 48 bytes as an array of (lightness, a, b) structs."""
    hexed = F.hex(signature)

    def byte(place: Column) -> Column:
        return F.conv(F.substr(hexed, place * 2 + 1, F.lit(2)), 16, 10).cast("double")

    numbers = F.sequence(F.lit(0), F.lit(CELLS**2 - 1))
    return F.transform(
        numbers,
        lambda i: F.struct(byte(i * 3).alias("l"), (byte(i * 3 + 1) - 128).alias("a"), (byte(i * 3 + 2) - 128).alias("b")),
    )


def sees(cells: Column, named: Column) -> Column:
    """Whether a cell has one of the named colours."""
    found = F.lit(False)
    for name, region in REGIONS.items():
        found = found | (F.array_contains(named, name) & F.exists(cells, partial(_within, region)))
    return found


def _within(region: Region, cell: Column) -> Column:
    chroma = F.hypot(cell["a"], cell["b"])
    hue = F.pmod(F.degrees(F.atan2(cell["b"], cell["a"])), F.lit(360.0))
    first, last = region.hues
    in_hues = hue.between(first, last) if first <= last else (hue >= first) | (hue <= last)
    in_lightness = cell["l"] <= min(100.0, region.max_lightness + BLACK_IN_A_CELL)
    return in_hues & chroma.between(region.min_chroma / 2, region.max_chroma) & in_lightness
