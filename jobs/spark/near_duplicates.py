"""All pairs of 256-bit hashes within a Hamming radius of at most 31, and the groups they form. Exact, without all pairs.

A hash is 16 bands of 16 bits. Two hashes within 31 bits differ by at most 31 // 16 = 1 bit in some band (pigeonhole), so
one hash's bands, as they are, meet the other's bands with up to one bit flipped (17 probes) in a plain equality join.
The distance is tested inside the join: no candidate is stored or shuffled, only pairs that are near.

Skew, such as bands that are all zero in very many pictures, stays exact and away from n * n:
  - equal hashes are one row from the start, however many pictures share them;
  - a band value that more than `heavy` hashes share is cut finer. The other 15 bands hold at most 31 bits of difference,
    so one of them differs by at most 31 // 15 = 2 bits: there the join is on both bands, with 137 probes for the second,
    which leaves about 15 * 137 / 65536 = 3 % of the comparisons.
"""

from itertools import combinations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

NUM_BANDS, BAND_BITS = 16, 16

# Above this, 2055 finer probes a hash cost less than 17 n / 2 comparisons a hash (a probe taken as 40 comparisons).
HEAVY = 10_000

# SQL: band i of `words`, an integer from 0 to 65535 (band 0 = the first two bytes); bits by which two hashes differ.
BAND = f"cast(shiftrightunsigned(words[int(i / 4)], {BAND_BITS} * (3 - i % 4)) & {2**BAND_BITS - 1} as int)"
DISTANCE = " + ".join(f"bit_count(a.words[{i}] ^ b.words[{i}])" for i in range(4))


def hashed(features: DataFrame, bundle_digest: str, min_quality: float) -> DataFrame:
    """Whole pictures of one bundle with a telling hash: image_id, words (the 32 bytes as 4 longs)."""
    words = [F.conv(F.hex(F.substring("hash", 8 * i + 1, 8)), 16, -10).cast("bigint") for i in range(4)]
    telling = (F.col("bundle_digest") == bundle_digest) & (F.col("crop") == 0) & (F.col("hash_quality") >= min_quality)
    return features.where(telling & F.col("hash").isNotNull()).select("image_id", F.array(*words).alias("words"))


def near_pairs(words: DataFrame, max_distance: int, heavy: int = HEAVY) -> DataFrame:
    """All pairs of different hashes within `max_distance` (at most 31), each once, a < b: a, b, distance.

    `words` holds each hash once. `heavy`: hashes that may share one band value before it is cut finer.
    """
    assert max_distance < 2 * NUM_BANDS, max_distance
    bands = words.selectExpr("words", f"posexplode(transform(sequence(0, {NUM_BANDS - 1}), i -> {BAND})) as (band, value)")
    crowded = bands.groupBy("band", "value").agg(F.count("*").alias("size")).where(F.col("size") > heavy).drop("size")
    probes = bands.selectExpr("words", "band", f"explode({_flipped('value', max_distance // NUM_BANDS)}) as value")
    left = _cut_finer(bands, crowded, max_flips=0).alias("a")
    right = _cut_finer(probes, crowded, max_flips=max_distance // (NUM_BANDS - 1)).alias("b")
    same_key = [F.col(f"a.{key}") == F.col(f"b.{key}") for key in ("band", "value", "second")]
    near = (F.col("a.words") < F.col("b.words")) & (F.expr(DISTANCE) <= max_distance)
    pairs = left.join(right, on=[*same_key, near], how="inner")
    return pairs.select(F.col("a.words").alias("a"), F.col("b.words").alias("b"), F.expr(DISTANCE).alias("distance")).distinct()


def components(pairs: DataFrame) -> DataFrame:
    """Connected components of pairs (a, b): vertex, label (the smallest vertex of its component).

    Every round, a vertex takes the smallest label around it and then its label's label, so that long chains close in a few
    rounds; the rounds end when nothing changes.
    """
    edges = pairs.select("a", "b").union(pairs.select("b", "a")).toDF("vertex", "neighbour").persist()
    labels = edges.groupBy("vertex").agg(F.min(F.least("vertex", "neighbour")).alias("label")).localCheckpoint()
    while True:
        around = labels.select(F.col("vertex").alias("neighbour"), F.col("label").alias("near"))
        spread = edges.join(around, on="neighbour", how="inner").groupBy("vertex").agg(F.min("near").alias("near"))
        taken = labels.join(spread, on="vertex", how="inner").select(
            "vertex", F.least("label", "near").alias("label"), F.col("label").alias("old")
        )
        further = taken.select(F.col("vertex").alias("label"), F.col("label").alias("root"))
        rooted = (
            taken.join(further, on="label", how="inner").select("vertex", F.col("root").alias("label"), "old").localCheckpoint()
        )
        labels = rooted.select("vertex", "label")
        if rooted.where("label != old").isEmpty():
            edges.unpersist()
            return labels


def groups(images: DataFrame, pairs: DataFrame, labels: DataFrame) -> DataFrame:
    """The table `duplicates` from hashed images, the near pairs of their hashes and the components of those."""
    either_side = pairs.select("a", "distance").union(pairs.select("b", "distance")).toDF("words", "distance")
    nearest = either_side.groupBy("words").agg(F.min("distance").alias("distance"))
    linked = nearest.join(labels.withColumnRenamed("vertex", "words"), on="words", how="inner")
    by_hash = images.groupBy("words").agg(F.collect_list("image_id").alias("ids")).join(linked, on="words", how="left")
    group = F.coalesce("label", "words")
    sizes = by_hash.groupBy(group.alias("group")).agg(
        F.min(F.array_min("ids")).alias("group_id"), F.sum(F.size("ids")).cast("int").alias("group_size")
    )
    members = by_hash.withColumn("group", group).join(sizes.where("group_size > 1"), on="group", how="inner")
    distance = F.when(F.size("ids") > 1, F.lit(0)).otherwise(F.col("distance")).cast("int")
    return members.select(F.explode("ids").alias("image_id"), "group_id", "group_size", distance.alias("nearest_distance"))


def _flipped(value: str, max_flips: int) -> str:
    """SQL: the array of every band value within `max_flips` bits of the one that `value` stands for."""
    masks = [sum(1 << bit for bit in bits) for flips in range(max_flips + 1) for bits in combinations(range(BAND_BITS), flips)]
    return f"transform(array({', '.join(map(str, masks))}), mask -> {value} ^ mask)"


def _cut_finer(rows: DataFrame, crowded: DataFrame, max_flips: int) -> DataFrame:
    """Rows (words, band, value) with a second key: -1, or where (band, value) is crowded, one for each probe of another band."""
    probes = _flipped(f"({BAND} + i * {2**BAND_BITS})", max_flips)
    finer = F.expr(f"flatten(transform(filter(sequence(0, {NUM_BANDS - 1}), i -> i != band), i -> {probes}))")
    marked = rows.join(F.broadcast(crowded.withColumn("is_crowded", F.lit(True))), on=["band", "value"], how="left")
    keys = F.when(F.col("is_crowded"), finer).otherwise(F.array(F.lit(-1)))
    return marked.select("words", "band", "value", F.explode(keys).alias("second"))
