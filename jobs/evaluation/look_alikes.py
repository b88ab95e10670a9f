"""Siblings whose first photos have nearly one embedding: visual search cannot tell them apart.

Spark brings a style's siblings together (jobs.spark.siblings) and they pass here style by style: SQL has no half-precision floats
(taken apart there, 354 products of 1280 numbers took 40 s), and executors need not have this project's Python.
Memory holds one style.

Letters: N siblings of one style, D numbers of an embedding, B of them compared with all at once.
"""

import heapq
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from jobs.evaluation.doctor_report import Example, Product

BLOCK_ROWS = 1024  # B: bounds the memory for a style of very many

Row = dict[str, Any]  # with jobs.spark.siblings.SIBLINGS


def look_alikes(siblings: Iterable[Row], min_cosine: float, num_examples: int) -> tuple[int, list[Example]]:
    """How many pairs, each product with the one it is nearest to, are that near; the nearest of them as examples."""
    num_pairs = 0
    worst: list[tuple[float, str, Row, Row]] = []
    for _, rows in groupby(siblings, key=itemgetter("style")):
        near = pairs_of(list(rows), min_cosine)
        num_pairs += len(near)
        worst = heapq.nsmallest(num_examples, [*worst, *near], key=itemgetter(0, 1))
    return num_pairs, [Example("pairs", f"cosine {-less:.4f}", (shown(one), shown(other))) for less, _, one, other in worst]


def pairs_of(rows: list[Row], min_cosine: float) -> list[tuple[float, str, Row, Row]]:
    """Pairs of one style: minus the cosine, their ids, both rows. Equal photos are no pair."""
    images_N = np.array([row["image_id"] for row in rows])
    vectors_ND = np.stack([np.frombuffer(row["embedding"], "<f2") for row in rows]).astype(np.float32)
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(rows), BLOCK_ROWS):
        cosines_BN = vectors_ND[start : start + BLOCK_ROWS] @ vectors_ND.T
        cosines_BN[images_N[start : start + BLOCK_ROWS, None] == images_N] = -2.0  # itself, and what shares its photo
        for place, nearest in enumerate(cosines_BN.argmax(axis=1).tolist()):
            if cosines_BN[place, nearest] >= min_cosine:
                pair = (min(start + place, nearest), max(start + place, nearest))
                found[pair] = float(cosines_BN[place, nearest])
    key = " ".join
    return [(-cosine, key(rows[n]["product_id"] for n in pair), rows[pair[0]], rows[pair[1]]) for pair, cosine in found.items()]


def shown(row: Row) -> Product:
    """A sibling of an example."""
    return Product(row["product_id"], row["title"], row["image_uri"], row["color"])
