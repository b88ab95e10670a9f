"""From results of the kernel to the answer on the wire: attributes from the product store, links, and why in words."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal
from urllib.parse import quote

from serve.api.schemas import (
    Attributes,
    Explanation,
    FoundCrop,
    ReleaseRef,
    ResultAnswer,
    ResultExplanation,
    SearchAnswer,
    ShardCount,
)
from serve.index.manifest import Manifest
from serve.index.release import HashMatch, ProductStore
from serve.index.search import CropAnswer, Result

Why = Callable[[Result], str]


def why_hash(match: HashMatch) -> Why:
    """Of an answer by the hash stage."""
    turned = "mirrored or turned, " if match.variant else ""
    same = f"the same photo: {turned}{match.distance} of 256 hash bits differ"
    return lambda result: same if result.match == "exact" else f"looks like the matched photo: cosine {result.score:.2f}"


def why_near(what: str) -> Why:
    """Of an answer by the vector stage; `what` is what was searched with."""

    def why(result: Result) -> str:
        part = f"item {result.query_crop} of your photo" if result.query_crop else what
        return f"looks like {part}: cosine {result.score:.2f}"

    return why


class Answers:
    """Writes the answers of one release."""

    def __init__(self, manifest: Manifest, products: ProductStore, min_score: float) -> None:
        self.products, self.min_score = products, min_score
        self.release = ReleaseRef(
            id=manifest.release_id,
            created_at=manifest.created_at,
            code_version=manifest.code_version,
            bundle=manifest.bundle.name,
            bundle_digest=manifest.bundle.digest,
        )

    def write(
        self,
        stage: Literal["hash", "vector"],
        results: Sequence[Result],
        crops: Sequence[CropAnswer],
        why: Why,
        shards: ShardCount,
        explain: Explanation | None,
    ) -> SearchAnswer:
        """The whole answer but its timings."""
        shown = self._results(results, why, explain is not None)
        return SearchAnswer(
            results=shown,
            crops=[self._crop(crop, why, explain is not None) for crop in crops],
            stage=stage,
            release=self.release,
            timings_ms={},
            partial=shards.answered < shards.asked,
            shards=shards,
            no_match=not shown,
            explain=explain,
        )

    def _crop(self, found: CropAnswer, why: Why, explained: bool) -> FoundCrop:
        return FoundCrop(
            box=found.crop.box,
            label=found.crop.label,
            score=found.crop.score,
            category=found.category,
            category_prob=found.category_prob,
            results=self._results(found.results, why, explained),
        )

    def _results(self, results: Iterable[Result], why: Why, explained: bool) -> list[ResultAnswer]:
        return [self._result(result, why, explained) for result in results if result.score >= self.min_score]

    def _result(self, result: Result, why: Why, explained: bool) -> ResultAnswer:
        known = self.products.product(result.product_id)
        assert known is not None, f"release {self.release.id}: a shard names a product that its product store lacks"
        return ResultAnswer(
            product_id=result.product_id,
            score=result.score,
            match=result.match,
            category=result.category,
            image_uri=result.image_uri,
            image_url=f"/v1/images/{result.image_id}?product={quote(result.product_id, safe='')}",
            attributes=Attributes.model_validate({name: known[name] for name in Attributes.model_fields}),
            crop=result.query_crop,
            image_crop=result.crop,
            image_box=result.box,
            why=why(result),
            explain=self._explained(result) if explained else None,
        )

    def _explained(self, result: Result) -> ResultExplanation:
        place = result.place or self.products.place(result.product_id)
        assert place is not None, "the product was found in it"
        return ResultExplanation(
            visual=result.score,
            parts=dict(result.parts),
            total=result.score + sum(part for _, part in result.parts),
            stage="hash" if result.match == "exact" else "vector",
            shard=place[0],
        )
