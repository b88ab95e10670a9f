"""From results of the kernel to the answer on the wire: attributes from the product store, links, and why in words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from serve.api.catalog import Catalog
from serve.api.schemas import (
    Attributes,
    Explanation,
    FoundCrop,
    LookAnswer,
    LookItem,
    ReleaseRef,
    ResultAnswer,
    ResultExplanation,
    SearchAnswer,
    ShardCount,
)
from serve.index.inserts import FRESH
from serve.index.manifest import Manifest
from serve.index.release import HashMatch
from serve.index.search import CropAnswer, Result, is_match

Why = Callable[[Result], str]
Known = Callable[[Result], Attributes | None]


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


def photo_path(image_id: str, product_id: str) -> str:
    """Where this server shows a photo."""
    return f"/v1/images/{image_id}?product={quote(product_id, safe='')}"


def attributes_of(known: Mapping[str, Any]) -> Attributes:
    """What the catalog says about a product."""
    return Attributes.model_validate({name: known[name] for name in Attributes.model_fields})


class Answers:
    """Writes the answers of one release."""

    def __init__(self, manifest: Manifest, products: Catalog, min_score: float) -> None:
        self.manifest, self.products, self.min_score = manifest, products, min_score
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
        *,
        is_picture: bool,
    ) -> SearchAnswer:
        """The whole answer but its timings. `is_picture`: scores are cosines of pictures, which have thresholds."""
        known = self._known()
        shown = self._results(results, known, why, explain is not None)
        return SearchAnswer(
            results=shown,
            crops=[self._crop(crop, known, why, explain is not None) for crop in crops],
            stage=stage,
            release=self.release,
            timings_ms={},
            partial=shards.answered < shards.asked,
            shards=shards,
            no_match=not shown or (is_picture and not any(is_match(self.manifest, result) for result in results)),
            explain=explain,
        )

    def look(self, product_id: str, of: str, items: Sequence[str]) -> LookAnswer:
        """A look without what was deleted since."""
        known = ((item, self.products.product(item)) for item in items if item != product_id)
        return LookAnswer(
            product_id=product_id,
            of=of,
            items=[
                LookItem(
                    product_id=item,
                    category=found["category"],
                    image_uri=found["image_uri"],
                    image_url=photo_path(found["image_id"], item),
                    attributes=attributes_of(found),
                )
                for item, found in known
                if found is not None
            ],
            release=self.release,
        )

    def _crop(self, found: CropAnswer, known: Known, why: Why, explained: bool) -> FoundCrop:
        return FoundCrop(
            box=found.crop.box,
            label=found.crop.label,
            score=found.crop.score,
            category=found.category,
            category_prob=found.category_prob,
            results=self._results(found.results, known, why, explained),
        )

    def _results(self, results: Iterable[Result], known: Known, why: Why, explained: bool) -> list[ResultAnswer]:
        shown = (self._result(result, known, why, explained) for result in results if result.score >= self.min_score)
        return [answer for answer in shown if answer is not None]

    def _known(self) -> Known:
        """Attributes of a result's product, read once: what is among the results is among those of a crop, and often of several.

        None where the product was deleted.
        """
        read: dict[str, Attributes | None] = {}

        def attributes(result: Result) -> Attributes | None:
            if result.product_id not in read:
                known = self.products.product(result.product_id, result.place)
                read[result.product_id] = None if known is None else attributes_of(known)
            return read[result.product_id]

        return attributes

    def _result(self, result: Result, known: Known, why: Why, explained: bool) -> ResultAnswer | None:
        """None where the product was deleted since it was found."""
        attributes = known(result)
        if attributes is None:
            return None
        return ResultAnswer(
            product_id=result.product_id,
            score=result.score,
            match=result.match,
            category=result.category,
            image_uri=result.image_uri,
            image_url=photo_path(result.image_id, result.product_id),
            attributes=attributes,
            crop=result.query_crop,
            image_crop=result.crop,
            image_box=result.box,
            why=why(result),
            explain=self._explained(result) if explained else None,
        )

    def _explained(self, result: Result) -> ResultExplanation:
        place = result.place or self.products.place(result.product_id)
        return ResultExplanation(
            visual=result.score,
            parts=dict(result.parts),
            total=result.score + sum(part for _, part in result.parts),
            stage="hash" if result.match == "exact" else "vector",
            shard=place[0] if place and not place[0].startswith(f"{FRESH}/") else FRESH,
        )
