"""Near pairs of 256-bit hashes within a Hamming radius of at most 31, and the groups they form. Exact, without all pairs.

Few enough go to one task. Else every hash goes to a task for each of its bands; which pairs are found there, and why none is
missed: jobs/spark/near_hashes.py. Where a task would have too many hashes, each band is cut by its first bits: a hash goes to the
part of its own bits, and to those that they become by the flips allowed in the band and that are smaller. A pair is found in the
part of the smaller of its two.

Equal hashes are one row from the start, however many pictures share them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jobs.spark.near_hashes import Band, bands_for, flips_of, links

ROWS_A_TASK = 16_000_000  # 32 bytes each, and about three times as much beside them
IMAGES_ALONE = 2_000_000  # that one task groups by itself: a million in 17 s, job and all, where dealing took 41 s
PAIRS = "a ARRAY<BIGINT>, b ARRAY<BIGINT>, distance INT"
GROUPS = "image_id STRING, group_id STRING, group_size INT, nearest_distance INT"


def hashed(features: DataFrame, bundle_digest: str, min_quality: float) -> DataFrame:
    """Whole pictures of one bundle with a telling hash: image_id, words (the 32 bytes as 4 longs)."""
    words = [F.conv(F.hex(F.substring("hash", 8 * i + 1, 8)), 16, -10).cast("bigint") for i in range(4)]
    telling = (F.col("bundle_digest") == bundle_digest) & (F.col("crop") == 0) & (F.col("hash_quality") >= min_quality)
    return features.where(telling & F.col("hash").isNotNull()).select("image_id", F.array(*words).alias("words"))


def groups(images: DataFrame, num_images: int, radius: int, images_alone: int = IMAGES_ALONE) -> DataFrame:
    """The table `duplicates` of so many hashed images."""
    if num_images <= images_alone:
        return images.coalesce(1).mapInArrow(partial(_groups_alone, radius=radius), GROUPS)
    pairs = near_pairs(images.select("words").distinct(), num_images, radius).persist()
    return _groups_of_pairs(images, pairs, components(pairs))


def near_pairs(words: DataFrame, num_hashes: int, radius: int, rows_a_task: int = ROWS_A_TASK) -> DataFrame:
    """Pairs of different hashes within `radius` bits, each once, a < b: a, b, distance. For every hash that has a neighbour a
    nearest one, and as many more as it takes to join what hangs together; not all, of which there may be very many.

    `words` holds each hash once, about `num_hashes` of them.
    """
    parts = Parts.for_hashes(num_hashes, radius, rows_a_task)
    dealt = words.select("words", F.explode(parts.of_hash()).alias("part")).repartitionById(parts.count, F.col("part"))
    found = dealt.mapInArrow(parts.near_pairs, PAIRS)
    return found.select(F.least("a", "b").alias("a"), F.greatest("a", "b").alias("b"), "distance").distinct()


@dataclass(frozen=True)
class Parts:
    """How hashes are dealt to tasks: one for each band and each choice of its first `prefix_bits` bits."""

    bands: list[Band]
    prefix_bits: int
    radius: int

    @classmethod
    def for_hashes(cls, num_hashes: int, radius: int, rows_a_task: int) -> "Parts":
        """The bands that cost least, cut so that at most about `rows_a_task` hashes are a task's own."""
        bands = bands_for(num_hashes, radius)
        wanted = ((num_hashes - 1) // rows_a_task).bit_length()
        return cls(bands, min(wanted, *(len(band.bits) for band in bands)), radius)

    @property
    def count(self) -> int:
        """Tasks."""
        return len(self.bands) << self.prefix_bits

    def of_hash(self) -> Column:
        """The tasks that a hash goes to, an array made from its `words`."""
        reached = []
        for place, band in enumerate(self.bands):
            bits = [f"(shiftrightunsigned(words[{bit // 64}], {63 - bit % 64}) & 1)" for bit in band.bits[: self.prefix_bits]]
            prefix = " + ".join(f"{bit} * {1 << (self.prefix_bits - 1 - i)}" for i, bit in enumerate(bits)) or "0"
            flips = ", ".join(map(str, flips_of(self.prefix_bits, band.flips)))
            own = f"cast({prefix} as int)"
            smaller = f"filter(transform(array({flips}), flip -> cast(flip as int) ^ {own}), part -> part <= {own})"
            reached.append(f"transform({smaller}, part -> part + {place << self.prefix_bits})")
        return F.expr(f"flatten(array({', '.join(reached)}))")

    def near_pairs(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The pairs (`PAIRS`) that one task finds among all its hashes (words, part)."""
        if not (given := list(batches)):
            return
        hashes = pa.Table.from_batches(given)
        part = hashes["part"][0].as_py()
        words_N4 = _words(hashes["words"])
        band, prefix = self.bands[part >> self.prefix_bits], part & ((1 << self.prefix_bits) - 1)
        lefts, rights, distances = links(words_N4.view(np.uint64), band, self.radius, prefix, self.prefix_bits)
        yield pa.RecordBatch.from_pydict(
            {"a": _lists(words_N4[lefts]), "b": _lists(words_N4[rights]), "distance": pa.array(distances, pa.int32())}
        )


def components(pairs: DataFrame) -> DataFrame:
    """Connected components of the pairs (a, b): vertex, label (the smallest vertex of its component).

    In every round a vertex takes the smallest label around it and then its label's label, so that long chains close in a few
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


def _groups_of_pairs(images: DataFrame, pairs: DataFrame, labels: DataFrame) -> DataFrame:
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


def _groups_alone(batches: Iterator[pa.RecordBatch], radius: int) -> Iterator[pa.RecordBatch]:
    """The table `duplicates` of all images (image_id, words), band after band."""
    if not (given := [batch for batch in batches if batch.num_rows]):
        return
    images = pa.Table.from_batches(given)
    words = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(images), [None, pa.py_buffer(_words(images["words"]))])
    hashes = words.dictionary_encode()
    hash_of_I, num = hashes.indices.to_numpy(), len(hashes.dictionary)
    words_N4 = np.frombuffer(hashes.dictionary.buffers()[1], np.uint64, 4 * num).reshape(-1, 4)
    found = [links(words_N4, band, radius) for band in bands_for(num, radius)]
    lefts, rights, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    nearest_N = np.full(num, radius + 1, np.int32)
    for ends in (lefts, rights):
        np.minimum.at(nearest_N, ends, distances)
    nearest_N[np.bincount(hash_of_I, minlength=num) > 1] = 0
    graph = coo_array((np.ones(len(lefts), np.int8), (lefts, rights)), shape=(num, num))
    group_of_I = connected_components(graph, directed=False)[1][hash_of_I]
    size_of_I = np.bincount(group_of_I)[group_of_I].astype(np.int32)
    kept = pa.table(
        {
            "image_id": images["image_id"],
            "group": group_of_I,
            "group_size": size_of_I,
            "nearest_distance": nearest_N[hash_of_I],
        }
    ).filter(pa.array(size_of_I > 1))
    first = kept.group_by("group").aggregate([("image_id", "min")]).rename_columns({"image_id_min": "group_id"})
    yield from (
        kept.join(first, "group", join_type="inner")
        .select(["image_id", "group_id", "group_size", "nearest_distance"])
        .to_batches()
    )


def _words(lists: pa.ChunkedArray) -> np.ndarray:
    words_N4: np.ndarray = lists.combine_chunks().flatten().to_numpy().reshape(-1, 4)
    return words_N4


def _lists(words_N4: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(words_N4.reshape(-1), 4).cast(pa.list_(pa.int64()))
