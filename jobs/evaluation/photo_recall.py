"""Recall of the whole search on photos with known answers, in this process: hash stage, analysis, search, fusion."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from jobs.config import JobError
from jobs.evaluation.metrics import hit_rate_at
from jobs.evaluation.queries import Query
from serve.index.release import Release
from serve.index.search import Answer, search_photo
from serve.vision.boxes import iou
from serve.vision.bundle import Bundle
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError
from serve.vision.spec import DecodeLimits

K = 10
MIN_IOU = 0.5  # a found crop stands for a true box from here on, as in PASCAL VOC


@dataclass(frozen=True)
class PhotoRecall:
    """Shares over all (photo, product) pairs: a photo of several products asks for each of them."""

    photo_recall_at_1: float
    photo_recall_at_5: float
    photo_recall_at_10: float
    photo_hash_stage_frac: float
    photo_pairs: int


def measure_photos(queries: Sequence[Query], release: Release, bundle: Bundle, limits: DecodeLimits) -> PhotoRecall:
    """Searches every photo. Raises JobError for one that can't be read: a query set is expected to be whole."""
    ranked: list[list[str]] = []
    truths: list[tuple[str]] = []
    num_hash = 0
    with GuardedDecoder(limits) as decoder:
        for query in tqdm(queries, desc="photos", unit="photo", disable=not sys.stderr.isatty()):
            try:
                answer = search_photo(query.path.read_bytes(), release, bundle, decoder, K)
            except (OSError, ImageError) as error:
                raise JobError(f"evaluate.queries: {query.path}: {error}") from error
            num_hash += answer.stage == "hash"
            for number, product_id in enumerate(query.product_ids):
                ranked.append(results_for(answer, query, number))
                truths.append((product_id,))
    recall = {k: round(hit_rate_at(ranked, truths, k), 4) for k in (1, 5, 10)}
    return PhotoRecall(recall[1], recall[5], recall[10], round(num_hash / len(queries), 4), len(truths))


def results_for(answer: Answer, query: Query, number: int) -> list[str]:
    """Product ids that answer for product `number`: of the crop found at its box, or of the whole answer."""
    results = answer.results
    if query.boxes_N4 and answer.crops:
        found_N4 = np.array([crop.crop.box for crop in answer.crops])
        overlaps = iou(found_N4, np.array([query.boxes_N4[number]]))[:, 0]
        if overlaps.max() >= MIN_IOU:
            results = answer.crops[int(overlaps.argmax())].results
    return [result.product_id for result in results]
