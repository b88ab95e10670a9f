"""Which part of the catalog a feed may have changed, found before its rows are parsed.

A row is known by its listing_id, the SHA-256 of its text. The part is made of whole products, so that their rows are judged
beside each other as in a whole feed:
    those that a row names which is not in `listings`, or a row of `listings` which is not in the feed any more
    those that more than one row names: which one comes first in the feed counts, and the order is kept nowhere
    those that something else is known to have changed for: what came over HTTP
"""

from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

BROADCAST_ROWS = 1_000_000  # as many ids are sent to every task rather than the tables shuffled


@dataclass(frozen=True)
class Part:
    """Every row of some products, and rows that name no product and left the feed."""

    rows: DataFrame  # of the feed: raw, place
    product_ids: DataFrame  # each once
    nameless_ids: DataFrame  # listing_id of rows that left the feed and named no product

    def of(self, table: DataFrame) -> DataFrame:
        """The rows of one of curate_catalog's tables that belong to this part."""
        inside = table.join(self.product_ids, on="product_id", how="left_semi")
        if "listing_id" in table.columns:
            inside = inside.unionByName(table.join(self.nameless_ids, on="listing_id", how="left_semi"))
        return inside.select(table.columns)


def changed_part(
    feed: DataFrame, listings: DataFrame, product_ids_of: Callable[[DataFrame], DataFrame], changed_ids: DataFrame | None
) -> Part:
    """What a feed (raw, place) may have changed since it became `listings` (listing_id, product_id).

    `product_ids_of` gives the product_id that each of some feed rows names, null where it names none. `changed_ids`
    (product_id) are products that something else is known to have changed for. What comes back is computed, and stays what
    it is when `listings` is written: Spark would compute again what was only persisted.
    """
    rows = feed.select(F.sha2("raw", 256).alias("listing_id"), "raw", "place")
    asked, known = rows.select("listing_id", F.lit(True).alias("asked")), listings.withColumn("known", F.lit(True))
    moved = asked.join(known, on="listing_id", how="full_outer").where("asked IS NULL OR known IS NULL").localCheckpoint()
    come, gone = moved.where("asked").select("listing_id"), moved.where("known").select("listing_id", "product_id")
    come_rows = rows.join(sent(come), on="listing_id", how="left_semi").select("raw", "place").localCheckpoint()
    named = listings.where("product_id IS NOT NULL")
    several = named.groupBy("product_id").count().where("count > 1").select("product_id")
    touched = gone.select("product_id").union(several).union(product_ids_of(come_rows))
    if changed_ids is not None:
        touched = touched.union(changed_ids)
    product_ids = sent(touched.where("product_id IS NOT NULL").distinct().localCheckpoint())
    stayed = named.join(product_ids, on="product_id", how="left_semi").join(sent(gone), on="listing_id", how="left_anti")
    stayed = stayed.select("listing_id").localCheckpoint()
    nameless_ids = sent(gone.where("product_id IS NULL").select("listing_id"))
    if stayed.isEmpty():  # the feed need not be read once more
        return Part(come_rows, product_ids, nameless_ids)
    again = rows.join(sent(stayed), on="listing_id", how="left_semi").select("raw", "place")
    return Part(come_rows.union(again).localCheckpoint(), product_ids, nameless_ids)


def sent(ids: DataFrame) -> DataFrame:
    """Computed ids, marked to be sent to every task where they are few."""
    return F.broadcast(ids) if ids.count() <= BROADCAST_ROWS else ids
