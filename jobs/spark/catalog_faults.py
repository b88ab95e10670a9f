"""Faults of a catalog that its tables tell: DataFrames in, faults out, no storage and no pixels.

Every finding gives rows of one form, so that they are counted and the worst are picked in one go:

    finding, kind   which fault, and which sort of it
    num             what it counts for (1; a host's dead links)
    weight          how bad it is, among those of its finding
    key             what it is about; settles ties, so that a run's examples are those of the next
    told            in words
    shown           at most SHOWN products with a photo: product_id, title, image_uri, says

`catalog` is one row a product and photo of it (position and image_uri are null: it has none), with what became of the photo.
Colours: jobs/spark/colour_faults.py.
"""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

SHOWN = 6  # products of an example: a placeholder photo may have a million
FAULT = ("finding", "kind", "num", "weight", "key", "told", "shown")
# Reasons of jobs.raydata.fetch; other photos came, and are broken.
DEAD = ("fetch_failed", "timeout", "host_down", "empty", "bad_scheme", "bad_host")
NO_PHOTO = ("no_image", "bad_scheme", "bad_host")  # reasons of jobs.spark.transforms


def catalog_of(products: DataFrame, images: DataFrame, fetches: DataFrame, bundle_digest: str) -> DataFrame:
    """Every product with its photos and what became of them under this bundle (status null: not looked at yet)."""
    wanted = products.select("product_id", "title", "brand", "category", "color", "group_id")
    ours = fetches.where(of_bundle(bundle_digest))
    fates = ours.select("image_uri", "image_id", "status", "reason", "detail")
    return wanted.join(images, on="product_id", how="left").join(fates, on="image_uri", how="left")


def of_bundle(digest: str) -> Column:
    """Rows of one bundle."""
    return F.col("bundle_digest") == digest


def facts(catalog: DataFrame, labels: Sequence[str]) -> DataFrame:
    """One row: products and photos, and how many products have what a finding needs."""
    products = catalog.groupBy("product_id").agg(
        F.first(F.struct("brand", "color", "group_id", "category")).alias("has"), F.count("image_uri").alias("num_photos")
    )
    known = knows(labels, F.col("has.category"))
    return products.agg(
        F.count("*").alias("products"),
        F.coalesce(F.sum("num_photos"), F.lit(0)).alias("photos"),
        F.count("has.brand").alias("branded"),
        F.count("has.color").alias("coloured"),
        F.count("has.group_id").alias("grouped"),
        F.count("has.category").alias("categorised"),
        F.count_if(known).alias("known"),
    )


def usable(catalog: DataFrame) -> DataFrame:
    """The photos that search has."""
    return catalog.where("status = 'embedded'")


def first_photos(catalog: DataFrame) -> DataFrame:
    """Of each product its first photo that search has."""
    photo = F.struct(*(name for name in catalog.columns if name != "product_id"))
    first = usable(catalog).groupBy("product_id").agg(F.min_by(photo, "position").alias("photo"))
    return first.select("product_id", "photo.*")


def shared_pictures(catalog: DataFrame) -> DataFrame:
    """One picture under several products; `siblings`: all of one group_id, `strangers`: others, and those come first."""
    rows = usable(catalog).select("image_id", "product_id", "title", "image_uri", "position", "group_id")
    group = F.when(F.count("group_id") == F.count("*"), F.count_distinct("group_id"))
    sizes = rows.groupBy("image_id").agg(F.count_distinct("product_id").alias("size"), group.alias("num_groups"))
    several = sizes.where("size > 1")
    theirs = rows.join(several.select("image_id"), on="image_id", how="left_semi")
    shared = several.join(first_shown(theirs, "image_id", says=F.lit("")), on="image_id", how="inner")
    siblings = F.coalesce(F.col("num_groups") == 1, F.lit(False))
    return fault(
        shared,
        "shared_picture",
        kind=F.when(siblings, "siblings").otherwise("strangers"),
        weight=F.when(siblings, -1 / F.col("size")).otherwise(F.col("size")),
        key=F.col("image_id"),
        told=F.concat(F.lit("one picture, "), F.col("size"), F.lit(" products")),
    )


def across_brands(catalog: DataFrame, duplicates: DataFrame) -> DataFrame:
    """Groups of near-duplicate pictures under products of several brands."""
    brand = F.lower(F.trim("brand"))
    groups = duplicates.select("image_id", F.col("group_id").alias("group"))
    rows = usable(catalog).withColumn("brand_key", brand).join(groups, on="image_id", how="inner")
    sizes = rows.groupBy("group").agg(
        F.count_distinct("brand_key").alias("num_brands"), F.count_distinct("product_id").alias("size")
    )
    several = sizes.where("num_brands > 1")
    shown = first_shown(rows, "group", says=F.coalesce("brand", F.lit("")), one_of="brand_key")
    return fault(
        several.join(shown, on="group", how="inner"),
        "across_brands",
        kind=F.lit("brands"),
        weight=F.col("num_brands") + 1 - 1 / F.col("size"),
        key=F.col("group"),
        told=F.concat(F.lit("nearly one picture, "), F.col("num_brands"), F.lit(" brands, "), F.col("size"), F.lit(" products")),
    )


def wrong_categories(catalog: DataFrame, features: DataFrame, labels: Sequence[str], min_prob: float) -> DataFrame:
    """Products in a category that the bundle knows, whose photo it takes for another one.

    The first photo accuses, by its largest item (whole where nothing was found in it); any crop of any photo that agrees with
    the feed acquits. A category agrees with those above and below it.
    """
    predicted = features.where("category is not null").select(
        "image_id", "crop", ((F.col("x1") - F.col("x0")) * (F.col("y1") - F.col("y0"))).alias("area"),
        F.col("category").alias("seen"), F.col("category_prob").alias("prob"),
    )  # fmt: skip
    judged = usable(catalog).where(knows(labels, F.col("category"))).join(predicted, on="image_id", how="inner")
    accusing_first = F.struct("position", F.col("crop") == 0, -F.col("area"), "crop")
    verdicts = judged.groupBy("product_id").agg(
        F.bool_or(agree(F.col("category"), F.col("seen"))).alias("acquitted"),
        F.min_by(F.struct("title", "image_uri", "category", "seen", "prob"), accusing_first).alias("photo"),
    )
    wrong = verdicts.where(~F.col("acquitted") & (F.col("photo.prob") >= min_prob)).select("product_id", "photo.*")
    shown = shown_as(F.col("product_id"), F.col("title"), F.col("image_uri"), F.concat(F.lit("feed: "), "category"))
    return fault(
        wrong.withColumn("shown", F.array(shown)),
        "wrong_category",
        kind=F.col("seen"),
        weight=F.col("prob"),
        key=F.col("product_id"),
        told=F.concat(F.lit("the photo shows "), "seen", F.format_string(" (probability %.2f)", "prob")),
    )


def without_photo(catalog: DataFrame, rejects: DataFrame) -> DataFrame:
    """Products of which search has no photo: all were rejected, or there was none to begin with (set aside as a bad row)."""
    fate = F.concat("reason", F.coalesce(F.concat(F.lit(" ("), "detail", F.lit(")")), F.lit("")))
    state = F.when(F.col("image_uri").isNull(), "no_image").when(F.col("status") == "rejected", fate)
    products = catalog.groupBy("product_id").agg(
        F.first("title").alias("title"),
        F.bool_and(state.isNotNull()).alias("none"),  # a photo that was not looked at yet may still be good
        F.sort_array(F.collect_set(state)).alias("states"),
        F.min(F.coalesce("reason", F.lit("no_image"))).alias("kind"),
        F.count("image_uri").alias("num_photos"),
        F.min("image_uri").alias("image_uri"),
    )
    lacking = products.where("none").drop("none")
    set_aside = rejects.where(F.col("reason").isin(*NO_PHOTO) & F.col("product_id").isNotNull())
    unlisted = set_aside.join(catalog.select("product_id").distinct(), on="product_id", how="left_anti")
    rows = unlisted.groupBy("product_id").agg(
        F.lit(None).cast("string").alias("title"),
        F.sort_array(F.collect_set(fate)).alias("states"),
        F.min("reason").alias("kind"),
        F.lit(0).cast("bigint").alias("num_photos"),
        F.lit(None).cast("string").alias("image_uri"),
    )
    both = lacking.unionByName(rows)
    shown = shown_as(F.col("product_id"), F.col("title"), F.col("image_uri"), F.lit(""))
    return fault(
        both.withColumn("shown", F.array(shown)),
        "without_photo",
        kind=F.col("kind"),
        weight=F.col("num_photos"),
        key=F.col("product_id"),
        told=F.concat(F.col("num_photos"), F.lit(" photos: "), F.array_join(F.slice("states", 1, 5), ", ")),
    )


def dead_links(catalog: DataFrame) -> DataFrame:
    """Photos that did not come, by host, bucket or folder; `num` of them are dead."""
    links = catalog.where("image_uri is not null").withColumn("place", place_of(F.col("image_uri")))
    dead = (F.col("status") == "rejected") & F.col("reason").isin(*DEAD)
    sizes = links.groupBy("place").agg(
        F.count_distinct("image_uri").alias("num_links"),
        F.count_distinct(F.when(dead, F.col("image_uri"))).alias("num_dead"),
        F.sort_array(F.collect_set(F.when(dead, F.col("reason")))).alias("reasons"),
    )
    fate = F.concat_ws(" ", "reason", "detail")
    shown = first_shown(links.where(dead), "place", says=fate)
    return fault(
        sizes.where("num_dead > 0").join(shown, on="place", how="inner"),
        "dead_links",
        kind=F.array_join("reasons", ", "),
        num=F.col("num_dead"),
        weight=F.col("num_dead"),
        key=F.col("place"),
        told=F.concat("place", F.lit(": "), F.col("num_dead"), F.lit(" of "), F.col("num_links"), F.lit(" photos, "),
                      F.array_join("reasons", ", ")),
    )  # fmt: skip


def counts(faults: DataFrame) -> DataFrame:
    """finding, kind, num: how many."""
    return faults.groupBy("finding", "kind").agg(F.sum("num").alias("num"))


def worst(faults: DataFrame, num_examples: int, num_of: dict[str, int]) -> DataFrame:
    """The worst `num_examples` of each finding (`num_of` of those named there), worst first."""
    wanted = F.lit(num_examples)
    for finding, num in num_of.items():
        wanted = F.when(F.col("finding") == finding, num).otherwise(wanted)
    order = Window.partitionBy("finding").orderBy(F.col("weight").desc(), "key")
    ranked = faults.withColumn("place", F.row_number().over(order))
    most = max([num_examples, *num_of.values()])
    return ranked.where((F.col("place") <= most) & (F.col("place") <= wanted)).orderBy("finding", "place").drop("place")


def knows(labels: Sequence[str], category: Column) -> Column:
    """Whether one of the bundle's labels is this category of the shop, or above or below it."""
    return F.exists(F.array(*map(F.lit, labels)).cast("array<string>"), lambda label: agree(category, label))


def agree(one: Column, other: Column) -> Column:
    """Whether two category paths are one, or one lies below the other."""
    one, other = F.concat(F.lower(one), F.lit("/")), F.concat(F.lower(other), F.lit("/"))
    return one.startswith(other) | other.startswith(one)


def place_of(uri: Column) -> Column:
    """Host or bucket of a URI; the folder of a file."""
    is_file = uri.startswith("file:") | ~uri.contains("://")
    return F.when(is_file, F.regexp_replace(uri, r"/[^/]*$", "")).otherwise(
        F.regexp_extract(uri, r"^[^:]+://(?:[^/@]*@)?([^/?#]+)", 1)
    )


def first_shown(rows: DataFrame, key: str, says: Column, one_of: str | None = None) -> DataFrame:
    """key, shown: the first photos of each key, at most SHOWN, each product once; first of each `one_of` where given."""
    products = Window.partitionBy(key, "product_id").orderBy("position", "image_uri")
    once = rows.withColumn("turn", F.row_number().over(products)).where("turn = 1")
    if one_of is not None:
        turns = Window.partitionBy(key, one_of).orderBy("product_id")
        once = once.withColumn("turn", F.row_number().over(turns))
    order = Window.partitionBy(key).orderBy("turn", "product_id")
    first = once.withColumn("rank", F.row_number().over(order)).where(F.col("rank") <= SHOWN)
    entry = shown_as(F.col("product_id"), F.col("title"), F.col("image_uri"), says).alias("entry")
    listed = first.groupBy(key).agg(F.sort_array(F.collect_list(F.struct("rank", entry))).alias("entries"))
    return listed.select(key, F.col("entries.entry").alias("shown"))


def shown_as(product_id: Column, title: Column, image_uri: Column, says: Column) -> Column:
    """A product of an example."""
    return F.struct(product_id.alias("product_id"), title.alias("title"), image_uri.alias("image_uri"), says.alias("says"))


def fault(
    rows: DataFrame, finding: str, *, kind: Column, weight: Column, key: Column, told: Column, num: Column | None = None
) -> DataFrame:
    """Rows with a column `shown` as faults."""
    return rows.select(
        F.lit(finding).alias("finding"),
        kind.alias("kind"),
        (F.lit(1) if num is None else num).cast("bigint").alias("num"),
        weight.cast("double").alias("weight"),
        key.alias("key"),
        told.alias("told"),
        "shown",
    )
