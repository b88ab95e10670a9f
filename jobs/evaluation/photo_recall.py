"""Recall of the whole search on photos with known answers, in this process: hash stage, analysis, search, fusion.

Letters: Q query crops of all photos, D width.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from jobs.config import JobError
from jobs.evaluation.metrics import hit_rate_at
from jobs.evaluation.queries import Query
from jobs.evaluation.waterfall import Pair
from serve.index.release import Release
from serve.index.search import Answer, Result, search_photo
from serve.vision.boxes import iou
from serve.vision.bundle import Bundle, CropFeatures
from serve.vision.crop import BoxError
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


@dataclass(frozen=True)
class SeenPhotos:
    """Every query photo as it was analysed: its crops as found and as drawn, one after the other."""

    features: list[CropFeatures]
    found: list[list[int]]  # of each photo: places in `features`, the whole photo first
    drawn: list[list[int]]  # one for each known box, in their order; empty where none are known

    @property
    def embeddings_QD(self) -> np.ndarray:
        """Unit float32."""
        return np.stack([feature.embedding for feature in self.features])

    def crops_of(self, query: Query, photo: int, number: int) -> tuple[int, ...]:
        """The crop that answers for product `number`: the found one at its box, or all of them."""
        found = self.found[photo]
        if query.boxes_N4:
            boxes_N4 = np.array([self.features[crop].crop.box for crop in found])
            overlaps = iou(boxes_N4, np.array([query.boxes_N4[number]]))[:, 0]
            if overlaps.max() >= MIN_IOU:
                return (found[int(overlaps.argmax())],)
        return tuple(found)

    def true_crops_of(self, query: Query, photo: int, number: int) -> tuple[int, ...]:
        """The product's own box where it is known, else what was found."""
        return (self.drawn[photo][number],) if query.boxes_N4 else tuple(self.found[photo])

    def asked(self, queries: Sequence[Query]) -> list[tuple[str, list[Mapping[str, float] | None]]]:
        """Each product asked for, and the predictions of the crops that may find it."""
        return [
            (product_id, [self.features[crop].category_probs for crop in self.true_crops_of(query, photo, number)])
            for photo, query in enumerate(queries)
            for number, product_id in enumerate(query.product_ids)
        ]


def see_photos(
    queries: Sequence[Query], bundle: Bundle, limits: DecodeLimits, done: Callable[[int], None] = lambda num: None
) -> SeenPhotos:
    """Analyses every photo, and calls `done(1)` after each.

    Raises JobError for one that can't be read: a query set is expected to be whole.
    """
    seen = SeenPhotos([], [], [])
    with GuardedDecoder(limits) as decoder:
        for query in queries:
            try:
                image = decoder.decode(query.path.read_bytes())
                drawn = bundle.analyse([image], [query.boxes_N4])[0][1:] if query.boxes_N4 else []
            except (OSError, ImageError, BoxError) as error:
                raise JobError(f"evaluate.queries: {query.path}: {error}") from error
            found = bundle.analyse([image])[0]
            for places, features in ((seen.found, found), (seen.drawn, drawn)):
                places.append(list(range(len(seen.features), len(seen.features) + len(features))))
                seen.features.extend(features)
            done(1)
    return seen


@dataclass(frozen=True)
class FoundPhotos:
    """What came back for the photos."""

    recall: PhotoRecall
    pairs: list[Pair]  # what the waterfall is made of
    right: list[Result]  # first results that are a product asked for, found by looks


def measure_photos(
    queries: Sequence[Query], seen: SeenPhotos, release: Release, bundle: Bundle, limits: DecodeLimits
) -> FoundPhotos:
    """Searches every photo as serving does."""
    pairs: list[Pair] = []
    right: list[Result] = []
    num_hash = 0
    with GuardedDecoder(limits) as decoder:
        for photo, query in enumerate(tqdm(queries, desc="search", unit="photo", disable=not sys.stderr.isatty())):
            data = query.path.read_bytes()
            answer = plain = search_photo(data, release, bundle, decoder, K)
            if answer.stage == "hash":
                num_hash += 1
                plain = search_photo(data, release, bundle, decoder, K, use_hash=False)
            right += [result for result in plain.results[:1] if result.product_id in query.product_ids]
            for number, product_id in enumerate(query.product_ids):
                ranked, without_hash = (tuple(results_for(found, query, number)) for found in (answer, plain))
                crops = (seen.crops_of(query, photo, number), seen.true_crops_of(query, photo, number))
                pairs.append(Pair(str(query.path), product_id, ranked, without_hash, *crops))
    truths = [(pair.product_id,) for pair in pairs]
    recall = {k: round(hit_rate_at([pair.ranked for pair in pairs], truths, k), 4) for k in (1, 5, 10)}
    shares = PhotoRecall(recall[1], recall[5], recall[10], round(num_hash / len(queries), 4), len(pairs))
    return FoundPhotos(shares, pairs, right)


def results_for(answer: Answer, query: Query, number: int) -> list[str]:
    """Product ids that answer for product `number`: of the crop found at its box, or of the whole answer."""
    results = answer.results
    if query.boxes_N4 and answer.crops:
        found_N4 = np.array([crop.crop.box for crop in answer.crops])
        overlaps = iou(found_N4, np.array([query.boxes_N4[number]]))[:, 0]
        if overlaps.max() >= MIN_IOU:
            results = answer.crops[int(overlaps.argmax())].results
    return [result.product_id for result in results]
