"""Near pairs of 256-bit hashes within a Hamming radius of at most 31, and the groups they form. Exact, without all pairs.

Every hash goes to a task for each of its bands; which pairs are found there, and why none is missed: jobs/spark/near_hashes.py.
Where a task would have too many hashes, each band is cut by its first bits: a hash goes to the part of its own bits, and to those
that they become by the flips allowed in the band and that are smaller. A pair is found in the part of the smaller of its two.

Equal hashes are one row from the start, however many pictures share them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jobs.spark.near_hashes import Band, bands_for, flips_of, links

ROWS_A_TASK = 16_000_000  # 32 bytes each, and about three times as much beside them
PAIRS_A_TASK = 5_000_000  # 64 bytes each, and about three times as much beside them
PAIRS = "a ARRAY<BIGINT>, b ARRAY<BIGINT>, distance INT"


def hashed(features: DataFrame, bundle_digest: str, min_quality: float) -> DataFrame:
    """Whole pictures of one bundle with a telling hash: image_id, words (the 32 bytes as 4 longs)."""
    words = [F.conv(F.hex(F.substring("hash", 8 * i + 1, 8)), 16, -10).cast("bigint") for i in range(4)]
    telling = (F.col("bundle_digest") == bundle_digest) & (F.col("crop") == 0) & (F.col("hash_quality") >= min_quality)
    return features.where(telling & F.col("hash").isNotNull()).select("image_id", F.array(*words).alias("words"))


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


def components(pairs: DataFrame, num_pairs: int, rows_a_task: int = PAIRS_A_TASK) -> DataFrame:
    """Connected components of so many pairs (a, b): vertex, label (one vertex of its component).

    Few enough go to one task. With more, in every round a vertex takes the smallest label around it and then its label's label,
    so that long chains close in a few rounds; the rounds end when nothing changes.
    """
    if num_pairs <= rows_a_task:
        return pairs.select("a", "b").coalesce(1).mapInArrow(_joined, "vertex ARRAY<BIGINT>, label ARRAY<BIGINT>")
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


def _joined(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The components of all pairs (a, b)."""
    if not (given := list(batches)):
        return
    pairs = pa.Table.from_batches(given)
    ends = np.concatenate([_words(pairs["a"]), _words(pairs["b"])])
    coded = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(ends), [None, pa.py_buffer(ends)]).dictionary_encode()
    lefts, rights = coded.indices.to_numpy().reshape(2, -1)
    num = len(coded.dictionary)
    graph = coo_array((np.ones(len(lefts), np.int8), (lefts, rights)), shape=(num, num))
    of_vertex = connected_components(graph, directed=False)[1]
    first_of_component = np.unique(of_vertex, return_index=True)[1]
    vertices_V4 = np.frombuffer(coded.dictionary.buffers()[1], np.int64, 4 * num).reshape(-1, 4)
    yield pa.RecordBatch.from_pydict({"vertex": _lists(vertices_V4), "label": _lists(vertices_V4[first_of_component[of_vertex]])})


def _words(lists: pa.ChunkedArray) -> np.ndarray:
    words_N4: np.ndarray = lists.combine_chunks().flatten().to_numpy().reshape(-1, 4)
    return words_N4


def _lists(words_N4: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(words_N4.reshape(-1), 4).cast(pa.list_(pa.int64()))
