"""One photo, one answer: hash stage, analysis, search and fusion. Jobs call it whole; serving composes the same functions.

Letters: Q query crops, D width, k results asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from serve.index.manifest import Manifest
from serve.index.release import Candidate, Filters, HashMatch, Release
from serve.vision.crop import Crop

if TYPE_CHECKING:
    from serve.vision.bundle import Bundle, CropFeatures
    from serve.vision.guarded import GuardedDecoder

EXACT_SCORE = 1.0 - 1e-6  # of a product that the hash stage found; above every "similar" one
Box = tuple[float, float, float, float]


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


def route(manifest: Manifest, category_probs: Mapping[str, float] | None) -> list[str] | None:
    """Partitions to search for a crop with these predicted categories, likeliest first.

    Taken until their probability passes `manifest.route_threshold`; None = all of them (no prediction, or too much of its
    probability is on categories that no partition is named after).
    """
    raise NotImplementedError


def fuse_crops(found: Sequence[Sequence[Candidate]], k: int) -> tuple[Result, ...]:
    """Best k distinct products over all query crops; a product's score is its best over the crops."""
    raise NotImplementedError


def hash_answer(match: HashMatch, similar: Sequence[Candidate], k: int) -> tuple[Result, ...]:
    """Products of the matched photo first ("exact"), then those nearest to its stored embedding ("similar")."""
    raise NotImplementedError


def crop_answers(features: Sequence["CropFeatures"], found: Sequence[Sequence[Candidate]], k: int) -> tuple[CropAnswer, ...]:
    """Each query crop with its own best k products."""
    raise NotImplementedError


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
    """Answer one encoded photo. Raises ImageError for what is no photo, ReleaseError for a bundle the release was not built with."""
    raise NotImplementedError
