"""One photo, one answer: hash stage, analysis, search and fusion. Jobs call it whole; serving composes the same functions.

Letters: Q query crops, D width, k results asked for.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from serve.index.manifest import Manifest, ReleaseError
from serve.index.release import Box, Candidate, Filters, HashMatch, Release
from serve.vision.crop import Crop
from serve.vision.turns import best_turn, glanced

if TYPE_CHECKING:
    from serve.vision.bundle import Bundle, CropFeatures
    from serve.vision.guarded import GuardedDecoder

EXACT_SCORE = 1.0 - 1e-6  # of a product that the hash stage found; no "similar" one is above it


class Result(NamedTuple):
    """One product of the answer."""

    product_id: str
    score: float
    match: Literal["exact", "similar"]
    category: str | None
    image_id: str
    image_uri: str
    query_crop: int  # number of the query crop that found it, see Answer.crops
    crop: int  # number of the stored crop
    box: Box | None  # of the stored crop, pixels of the upright stored image; None for a whole-photo match by hash
    place: tuple[str, int] | None = None  # shard path and row in products.arrow, where known
    parts: tuple[tuple[str, float], ...] = ()  # what re-ranking did to the score, by rule; the order is by their sum
    features: tuple[float, ...] = ()  # what the ranking could learn from, where feedback is taken


@dataclass(frozen=True)
class CropAnswer:
    """What was found for one item of the query photo."""

    crop: Crop
    category: str | None
    category_prob: float | None
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Answer:
    """The answer to one photo: the best k distinct products over all its crops, and each crop's own."""

    results: tuple[Result, ...]
    crops: tuple[CropAnswer, ...]
    stage: Literal["hash", "vector"]
    release_id: str


class Searcher(Protocol):
    """A Release or a ShardGroup."""

    def search(
        self, embeddings_QD: np.ndarray, k: int, partitions: Collection[str] | None = None, filters: Filters | None = None
    ) -> list[list[Candidate]]: ...


def route(manifest: Manifest, category_probs: Mapping[str, float] | None) -> list[str] | None:
    """Partitions to search for a crop with these predicted categories, likeliest first.

    Taken until their probability passes `manifest.route_threshold`; None = all of them (no prediction, or too much of its
    probability is on categories that no partition holds).
    """
    if not category_probs or len(manifest.partitions) == 1:
        return None
    chosen: list[str] = []
    passed = 0.0
    for name, prob in partition_probs(manifest, category_probs):
        chosen.append(name)
        passed += prob
        if passed >= manifest.route_threshold:
            return chosen
    return None


def partition_probs(manifest: Manifest, category_probs: Mapping[str, float]) -> list[tuple[str, float]]:
    """Partitions that hold predicted categories, and their probability, likeliest first."""
    owners = {prefix: partition.name for partition in manifest.partitions for prefix in partition.categories}
    probs: dict[str, float] = {}
    for category, prob in category_probs.items():
        owner = owners.get(category_prefix(category, manifest.partition_depth))
        if owner is not None:
            probs[owner] = probs.get(owner, 0.0) + prob
    return sorted(probs.items(), key=lambda item: (-item[1], item[0]))


def routes_of(manifest: Manifest, features: Sequence["CropFeatures"], filters: Filters | None = None) -> list[list[str] | None]:
    """Each crop's `route`; all partitions where the query names its category itself, whatever was predicted."""
    named = filters is not None and filters.category is not None
    return [None if named else route(manifest, feature.category_probs) for feature in features]


def partition_of(manifest: Manifest, category: str | None) -> str | None:
    """Name of the partition that holds products of `category`; None where none names it."""
    prefix = category_prefix(category, manifest.partition_depth)
    return next((partition.name for partition in manifest.partitions if prefix in partition.categories), None)


def is_match(manifest: Manifest, result: Result) -> bool:
    """Whether a result is good enough to be called one: the photo itself, or above the threshold of its partition."""
    if result.match == "exact" or manifest.no_match is None:
        return True
    return result.score >= manifest.no_match.thresholds.get(partition_of(manifest, result.category) or "", -1.0)


def category_prefix(category: str | None, depth: int) -> str:
    """The first `depth` levels of a category path; "" for none."""
    return "/".join((category or "").split("/")[:depth])


def search_crops(
    searcher: Searcher,
    embeddings_QD: np.ndarray,
    k: int,
    routes: Sequence[Sequence[str] | None],
    filters: Filters | None = None,
) -> list[list[Candidate]]:
    """Per crop the best k distinct products in the partitions of its route; crops of one route are searched together."""
    found: list[list[Candidate]] = [[] for _ in routes]
    keys = [None if partitions is None else frozenset(partitions) for partitions in routes]
    for key in dict.fromkeys(keys):
        crops = [q for q, other in enumerate(keys) if other == key]
        for q, candidates in zip(crops, searcher.search(embeddings_QD[crops], k, key, filters), strict=True):
            found[q] = candidates
    return found


def nearness(found: Sequence[Sequence[Candidate]]) -> float:
    """How near the catalog comes to these crops of a photo: half the best cosine, half the mean of each crop's best; -1 = no crop
    found anything. One crop that finds something by chance counts less so.
    """
    best = [candidates[0].score for candidates in found if candidates]
    return (max(best) + sum(best) / len(best)) / 2 if best else -1.0


def fuse_crops(found: Sequence[Sequence[Candidate]], k: int) -> tuple[Result, ...]:
    """Best k distinct products over all query crops; a product's score is its best over the crops."""
    best: dict[str, Result] = {}
    for number, candidates in enumerate(found):
        for candidate in candidates:
            if candidate.product_id not in best or candidate.score > best[candidate.product_id].score:
                best[candidate.product_id] = similar_result(candidate, number)
    return tuple(sorted(best.values(), key=lambda result: (-result.score, result.product_id))[:k])


def similar_result(candidate: Candidate, query_crop: int) -> Result:
    """A candidate as a result of the vector stage."""
    return Result(
        product_id=candidate.product_id,
        score=candidate.score,
        match="similar",
        category=candidate.category,
        image_id=candidate.image_id,
        image_uri=candidate.image_uri,
        query_crop=query_crop,
        crop=candidate.crop,
        box=candidate.box,
        place=(candidate.shard, candidate.product) if candidate.product >= 0 else None,
    )


def hash_answer(match: HashMatch, similar: Sequence[Candidate], k: int) -> tuple[Result, ...]:
    """Products of the matched photo first ("exact"), then those nearest to its stored embedding ("similar")."""
    exact = [
        Result(product_id, EXACT_SCORE, "exact", match.category, match.image_id, match.image_uri, 0, 0, None)
        for product_id in match.product_ids
    ]
    rest = [similar_result(c, 0) for c in similar if c.product_id not in match.product_ids]
    return tuple((exact + [result._replace(score=min(result.score, EXACT_SCORE)) for result in rest])[:k])


def crop_answers(features: Sequence["CropFeatures"], found: Sequence[Sequence[Candidate]], k: int) -> tuple[CropAnswer, ...]:
    """Each query crop with its own best k products."""
    return tuple(
        CropAnswer(
            crop=feature.crop,
            category=feature.category,
            category_prob=feature.category_prob,
            results=tuple(similar_result(candidate, number) for candidate in candidates[:k]),
        )
        for number, (feature, candidates) in enumerate(zip(features, found, strict=True))
    )


def search_photo(
    data: bytes,
    release: Release,
    bundle: "Bundle",
    decoder: "GuardedDecoder",
    k: int,
    *,
    use_hash: bool = True,
    filters: Filters | None = None,
) -> Answer:
    """Answer one encoded photo. Raises ImageError for what is no photo, ReleaseError for another bundle than the release's."""
    manifest = release.manifest
    if bundle.digest != manifest.bundle.digest:
        raise ReleaseError(
            f"bundle {bundle.digest[:12]} does not make the vectors of release {manifest.release_id}, which has bundle "
            f"{manifest.bundle.digest[:12]}; open that bundle or build the release again"
        )
    filters = filters or Filters()
    match = release.hash_stage(decoder.fingerprint(data), filters) if use_hash else None
    if match is not None:
        known = replace(filters, without=filters.without | set(match.product_ids))
        similar = release.search(match.embedding[None], k, filters=known)[0]
        return Answer(hash_answer(match, similar, k), (), "hash", manifest.release_id)

    def look(features: list["CropFeatures"]) -> tuple[list["CropFeatures"], list[list[Candidate]]]:
        embeddings_QD = np.stack([feature.embedding for feature in features])
        return features, search_crops(release, embeddings_QD, k, routes_of(manifest, features, filters), filters)

    pixels, turns = decoder.decode(data), bundle.config.turns
    features, found = look(bundle.analyse([pixels])[0])
    if turns is not None and nearness(glanced(found)) < turns.below:
        glances = [look(turned) for turned in bundle.turned_crops(pixels, glanced([feature.crop for feature in features]))]
        quarters = best_turn([nearness(seen) for seen in (glanced(found), *(seen for _, seen in glances))], turns.lead)
        if quarters:
            features, found = look(bundle.analyse_turned(pixels, quarters))
    return Answer(fuse_crops(found, k), crop_answers(features, found, k), "vector", manifest.release_id)
