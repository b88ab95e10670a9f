"""From feed rows to listings, rejects, products and images: DataFrames in, DataFrames out, no storage.

    parsed   every row's values as text, by the mapping of feed.columns
    judged   typed values, and the first rule a row breaks
    laid_over  what came over HTTP since, in the place of what the feed says
    settled  rows of one product_id joined: kept, or rejected as conflicting_duplicate, or withdrawn
    -> listings, rejects, products, images

Rules, in the order they are checked (a deleted row needs a product_id and sound flags alone):
    malformed_row         not a JSON object, or a CSV row with too many or too few fields
    missing_product_id    none, or longer than 256 characters, or with control characters in it
    bad_flag              `available` or `deleted` in words that mean neither yes nor no
    bad_timestamp         `updated_at` neither ISO 8601 nor seconds or milliseconds since 1970
    missing_title         none
    no_image              neither image_uri nor image_uris
    bad_scheme            an image URI whose scheme is not in feed.schemes
    bad_host              an http(s) image URI whose host is not in feed.hosts, where that names any; of s3 and gs: feed.buckets
    bad_price             not a number from 0 on
    unknown_currency      no ISO 4217 code, or a price without any (feed.defaults.currency gives one)
    broken_category       an empty level, ".." and the like
    bad_stock, bad_popularity   not a number
    conflicting_duplicate another row of the product says otherwise and is newer, or as old and earlier in the feed
"""

import re

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import FeedConfig
from jobs.spark import rules

TEXT_COLUMNS = (
    "product_id",
    "title",
    "description",
    "category",
    "price",
    "currency",
    "available",
    "stock",
    "gender",
    "brand",
    "seller",
    "color",
    "group_id",
    "popularity",
    "updated_at",
    "deleted",
)
IMAGE_COLUMNS = ("image_uri", "image_uris")
FEED_COLUMNS = TEXT_COLUMNS + IMAGE_COLUMNS

# What makes two rows of one product say the same: everything but the images and the time.
CONTENT = (
    "title",
    "description",
    "category",
    "price",
    "currency",
    "available",
    "stock",
    "gender",
    "brand",
    "seller",
    "color",
    "group_id",
    "popularity",
)
MAX_DETAIL_CHARS = 200


def parsed(feed: DataFrame, config: FeedConfig) -> DataFrame:
    """Feed rows (raw, place) of this catalog, equal rows once, first place: listing_id, raw, place, row, given, lists.

    `row` is the JSON value (null: malformed), `given` the trimmed text of every column after mapping and defaults (null:
    not there), `lists` the columns that may be lists.
    """
    rows = feed.groupBy("raw").agg(F.min("place").alias("place")).withColumn("row", F.try_parse_json("raw"))
    rows = rows.withColumn("row", F.when(F.col("raw").startswith("{"), F.col("row")))
    for theirs, value in config.where.items():
        rows = rows.where(F.col("row").isNull() | (_text(theirs) == value))

    def given(name: str) -> Column:
        text = F.nullif(F.trim(_text(config.columns.get(name, name))), F.lit(""))
        default = config.defaults.get(name)
        return (text if default is None else F.coalesce(text, F.lit(str(default)))).alias(name)

    def items(name: str) -> Column:
        return F.try_variant_get("row", json_path(config.columns.get(name, name)), "array<string>").alias(name)

    return rows.select(
        F.sha2("raw", 256).alias("listing_id"),
        "raw",
        "place",
        "row",
        F.struct(*(given(name) for name in FEED_COLUMNS)).alias("given"),
        F.struct(*(items(name) for name in ("category", *IMAGE_COLUMNS))).alias("lists"),
    )


def product_ids(feed: DataFrame, config: FeedConfig) -> DataFrame:
    """The product_id that each of some feed rows (raw, place) of this catalog names; null: none."""
    return parsed(feed, config).select("given.product_id")


def judged(rows: DataFrame, config: FeedConfig, folder: str) -> DataFrame:
    """Parsed rows with typed values: + product (struct of CONTENT, product_id, updated_at), images, deleted, fault.

    `fault` is null for a sound row, else (reason, detail) of the first rule it breaks. `folder` is the feed's, as URI.
    """
    given = {name: F.col(f"given.{name}") for name in FEED_COLUMNS}
    category = rules.category_levels(_items("lists.category", given["category"], separator=None), given["category"])
    code = rules.currency(given["price"], given["currency"])
    stock, deleted = rules.count(given["stock"]), F.coalesce(rules.flag(given["deleted"]), F.lit(False))
    in_stock = F.coalesce(rules.flag(given["available"]), stock > 0, F.lit(True))
    typed = {
        "product_id": given["product_id"],
        "title": given["title"],
        "description": given["description"],
        "category": F.array_join(category, "/"),
        "price": rules.amount(given["price"]),
        "currency": F.when(given["price"].isNotNull(), code),
        "available": in_stock,
        "stock": stock,
        "gender": rules.gender(given["gender"]),
        "brand": given["brand"],
        "seller": given["seller"],
        "color": given["color"],
        "group_id": given["group_id"],
        "popularity": rules.number(given["popularity"]),
        "updated_at": rules.moment(given["updated_at"]),
    }
    listed = [F.coalesce(_items(f"lists.{name}", given[name], separator=r"\|"), F.array()) for name in IMAGE_COLUMNS]
    named = F.filter(F.transform(F.concat(*listed), F.trim), lambda uri: uri != "")
    uris = F.array_distinct(F.transform(named, lambda uri: rules.image_uri(uri, folder)))
    product = F.struct(*(value.alias(name) for name, value in typed.items()))
    rows = rows.select("*", product.alias("product"), uris.alias("images"), deleted.alias("deleted"))
    return rows.withColumn("fault", _first_fault(config))


def _first_fault(config: FeedConfig) -> Column:
    """(reason, detail) of the first rule that a judged row breaks; null: none."""

    def broken(reason: str, column: str, condition: Column, value: Column | None = None) -> Column:
        shown = F.coalesce(F.left(F.col(f"given.{column}") if value is None else value, F.lit(MAX_DETAIL_CHARS)), F.lit("none"))
        return F.when(condition, F.struct(F.lit(reason).alias("reason"), F.concat(F.lit(f"{column}="), shown).alias("detail")))

    def unread(reason: str, column: str, value: Column | None = None) -> Column:
        """Something was given, and the typed value is null."""
        typed = F.col(f"product.{column}") if value is None else value
        return broken(reason, column, F.col(f"given.{column}").isNotNull() & typed.isNull())

    def scheme_unknown(uri: Column) -> Column:
        return ~rules.scheme(uri).isin(*config.schemes)

    def place_unknown(uri: Column) -> Column:
        return ~rules.is_allowed(uri, config.hosts, config.buckets)

    product_id, price, code = F.col("product.product_id"), F.col("product.price"), F.col("product.currency")
    bad_id = product_id.isNull() | (F.length(product_id) > rules.MAX_ID_CHARS) | product_id.rlike(r"\p{Cntrl}")
    malformed = F.struct(
        F.lit("malformed_row").alias("reason"), F.concat(F.lit("row="), F.left("raw", F.lit(MAX_DETAIL_CHARS))).alias("detail")
    )
    always = (
        F.when(F.col("row").isNull(), malformed),
        broken("missing_product_id", "product_id", bad_id),
        unread("bad_flag", "available", rules.flag(F.col("given.available"))),
        unread("bad_flag", "deleted", rules.flag(F.col("given.deleted"))),
        unread("bad_timestamp", "updated_at"),
    )
    when_alive = (
        broken("missing_title", "title", F.col("product.title").isNull()),
        broken("no_image", "image_uri", F.size("images") == 0),
        broken("bad_scheme", "image_uri", F.exists("images", scheme_unknown), F.filter("images", scheme_unknown)[0]),
        broken("bad_host", "image_uri", F.exists("images", place_unknown), F.filter("images", place_unknown)[0]),
        unread("bad_price", "price"),
        broken("unknown_currency", "currency", price.isNotNull() & ~rules.is_currency(code), code),
        unread("broken_category", "category"),
        unread("bad_stock", "stock"),
        unread("bad_popularity", "popularity"),
    )
    return F.coalesce(*always, F.when(~F.col("deleted"), F.coalesce(*when_alive)))


def laid_over(rows: DataFrame, changes: DataFrame) -> DataFrame:
    """Judged feed rows, and judged changes that came over HTTP in place of the rows they are newer than.

    `changes` has one row a product, with its time in updated_at and a column `stands_alone`. Of a product whose feed rows say
    nothing newer (an untimed row does not) the change counts: deleted, it leaves none; else it takes their place. A change of
    a product that the feed does not list counts where it stands alone: the product was put over HTTP with a photo.
    """
    product_id = F.col("product.product_id")
    times = changes.select(product_id.alias("changed_id"), F.col("product.updated_at").alias("changed_at"))
    sound = F.col("fault").isNull()
    joined = rows.join(F.broadcast(times), on=sound & (product_id == F.col("changed_id")), how="left")
    newer = F.coalesce(F.col("product.updated_at") > F.col("changed_at"), F.lit(False))
    kept = joined.where(F.col("changed_id").isNull() | newer).drop("changed_id", "changed_at")
    listed = rows.where(sound).select(product_id.alias("listed_id")).distinct()
    told = kept.where(F.col("fault").isNull()).select(product_id.alias("told_id")).distinct()
    counting = changes.where("not deleted").join(told, on=product_id == F.col("told_id"), how="left_anti")
    counting = counting.join(listed, on=product_id == F.col("listed_id"), how="left")
    counting = counting.where(F.col("listed_id").isNotNull() | F.col("stands_alone")).drop("listed_id", "stands_alone")
    return kept.unionByName(counting)


def settled(rows: DataFrame) -> DataFrame:
    """Judged rows with one word for each product: + winner (product struct), kept; conflicting rows get their fault.

    The newest `updated_at` wins, then the first in the feed. A deleted row without a time always wins, one as old as a
    living row wins too: then the product has no kept row. A row that says the same as the winner is kept for its images.
    """
    faulty = F.col("fault").isNotNull()
    untimed = F.when(F.col("deleted"), F.lit("9999-12-31")).otherwise("0001-01-01").cast("timestamp")
    rank = F.coalesce("product.updated_at", untimed)
    # Faulty rows are set aside one by one, so that rows without a product_id do not meet in one task.
    key = F.when(~faulty, F.col("product.product_id")).otherwise(F.col("listing_id"))
    newest_first = Window.partitionBy(faulty, key).orderBy(rank.desc(), F.col("deleted").desc(), "place")
    first = F.first(F.struct("product", "deleted")).over(newest_first)
    rows = rows.withColumn("first", first)
    detail = F.concat_ws(", ", *(_difference(name) for name in CONTENT))
    living = ~faulty & ~F.col("deleted") & ~F.col("first.deleted")
    conflict = F.struct(F.lit("conflicting_duplicate").alias("reason"), F.left(detail, F.lit(MAX_DETAIL_CHARS)).alias("detail"))
    return rows.select(
        "listing_id",
        "raw",
        "place",
        "row",
        F.col("product.product_id").alias("product_id"),
        F.coalesce("fault", F.when(living & (detail != ""), conflict)).alias("fault"),
        F.col("first.product").alias("winner"),
        "images",
        (living & (detail == "")).alias("kept"),
    )


def _difference(name: str) -> Column:
    """`name=value` where the row's product says otherwise than the first one, null where both say the same."""
    value = F.col(f"product.{name}")
    shown = F.concat(F.lit(f"{name}="), F.coalesce(value.cast("string"), F.lit("none")))
    return F.when(~value.eqNullSafe(F.col(f"first.product.{name}")), shown)


def listings(rows: DataFrame) -> DataFrame:
    """Settled rows as the table `listings`."""
    return rows.select("listing_id", "product_id", "raw")


def rejects(rows: DataFrame) -> DataFrame:
    """The settled rows with a fault, as the table `rejects`; what was no JSON object is wrapped into one."""
    as_json = F.when(F.col("row").isNull(), F.to_json(F.struct(F.col("raw").alias("malformed")))).otherwise(F.col("raw"))
    return rows.where("fault is not null").select(
        "listing_id", "product_id", "fault.reason", "fault.detail", as_json.alias("raw")
    )


def products(rows: DataFrame) -> DataFrame:
    """The settled rows that are kept, one a product, as the table `products`; row_hash is SHA-256 of its other columns."""
    kept = rows.where("kept").dropDuplicates(["product_id"]).select("winner.*")  # kept rows of one product have one winner
    row_hash = F.sha2(F.to_json(F.struct(*kept.columns)), 256).alias("row_hash")
    return kept.select("product_id", *CONTENT, "updated_at", row_hash)


def images(rows: DataFrame) -> DataFrame:
    """The photos of the settled rows that are kept, as the table `images`: each once a product, in the order of the feed."""
    by_product = (
        rows.where("kept").groupBy("product_id").agg(F.array_sort(F.collect_list(F.struct("place", "images"))).alias("rows"))
    )
    uris = F.array_distinct(F.flatten("rows.images"))
    return by_product.select("product_id", F.posexplode(uris).alias("position", "image_uri"))


def json_path(theirs: str) -> str:
    """Where a column of the feed lies: a name, nested as `a.b` or `a.b[0]`; what starts with $ is a JSON path already."""
    if theirs.startswith("$"):
        return theirs
    steps = re.findall(r"[^.\[\]]+|\[\d+\]", theirs)
    return "$" + "".join(step if step.startswith("[") else f'["{step}"]' for step in steps)


def _text(theirs: str) -> Column:
    return F.try_variant_get("row", json_path(theirs), "string")


def _items(column: str, text: Column, separator: str | None) -> Column:
    """A list as it is, or one written as JSON, or a text cut at `separator`; null: none of these."""
    written = F.when(text.startswith("["), F.from_json(text, "array<string>"))
    cut = F.split(text, separator) if separator else F.lit(None)
    return F.coalesce(F.col(column), written, cut)
