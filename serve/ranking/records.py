"""Rows that serving writes about its answers, and jobs read: delta-rs tables `feedback` and `judgments`.

Nothing of an upload is in them: a query is known by a random id alone.
"""

import pyarrow as pa

FEEDBACK_TABLE, JUDGMENTS_TABLE = "feedback", "judgments"
IMPRESSION, CLICK, PURCHASE = "impression", "click", "purchase"

# One row an event. An impression is written when the answer is given, one for each result that was shown, with the features it
# was ranked by; clicks and purchases are what the client sent for a query id that this server signed.
FEEDBACK = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("position", pa.int32()),  # of an impression, from 0
        pa.field("features", pa.list_(pa.float32())),  # of an impression: serve.ranking.ranker.FEATURES
        pa.field("shuffled", pa.bool_()),  # of an impression: the order was drawn by lot
        pa.field("client", pa.string(), nullable=False),  # salted digest of the address, of one day; "" of an impression
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

# One row a verdict; of one rater on one pair the newest counts. Grades: GRADES by number.
GRADES = ("wrong", "similar", "very similar", "same item")
JUDGMENTS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),  # image_id of the query photo
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("rater", pa.string(), nullable=False),
        pa.field("grade", pa.int32(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
