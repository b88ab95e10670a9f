"""From the fields a client sent, as JSON, as a form or in a URL, to one checked query."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from serve.api.problems import Problem, invalid_fields
from serve.api.schemas import Box, SearchRequest
from serve.index.release import Filters
from serve.ranking.candidates import Shopper
from serve.settings import ServeConfig

NESTED = {
    "filters": 'must be a JSON object such as {"price_max": 50}',
    "embedding": "must be a JSON list of numbers",
    "boxes": "must be a JSON list such as [[0, 0, 50, 80], [60, 10, 99, 90]]",
}


COMMAS = {"box", "price_range"}  # numbers between commas


@dataclass(frozen=True)
class Query:
    """A checked query: at most one of `image`, `image_url`, `product_id`, `embedding`; a `text` alone or beside one of them."""

    k: int
    image: bytes | None = None
    product_id: str | None = None
    image_url: str | None = None
    embedding: tuple[float, ...] | None = None  # unit length
    bundle_digest: str | None = None
    text: str | None = None
    boxes: tuple[Box, ...] = ()
    filters: Filters | None = None
    explain: bool = False
    look: bool = False
    shopper: Shopper = field(default_factory=Shopper)


def json_object(body: bytes) -> dict[str, Any]:
    """What a JSON body says. Raises Problem 422."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(422, "bad_json", "is not valid JSON", "body") from None
    if not isinstance(given, dict):
        raise Problem(422, "bad_json", "must be a JSON object", "body")
    return given


def parse_json(body: bytes) -> SearchRequest:
    """A JSON body, strictly typed. Raises Problem 422."""
    json_object(body)
    try:
        return SearchRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid_fields(error) from None


def parse_fields(fields: Mapping[str, str]) -> SearchRequest:
    """Fields of a form or of a URL, where every value is text. Raises Problem 422."""
    values: dict[str, Any] = dict(fields)
    if "image_base64" in values:
        raise Problem(422, "invalid_field", "belongs into a JSON body; here the photo is sent as it is", "image_base64")
    for name in COMMAS & values.keys():
        values[name] = values[name].split(",")
    for name in NESTED.keys() & values.keys():
        try:
            values[name] = json.loads(values[name])
        except (ValueError, RecursionError):
            raise Problem(422, "invalid_field", NESTED[name], name) from None
    try:
        return SearchRequest.model_validate(values)
    except ValidationError as error:
        raise invalid_fields(error) from None


def check_query(asked: SearchRequest, image: bytes | None, config: ServeConfig) -> Query:
    """One thing to search with, boxes only in a photo, and a k that this server gives. Raises Problem 422."""
    if asked.image_base64 is not None:
        if image is not None:
            raise Problem(422, "two_queries", "the photo was sent twice", "image_base64")
        try:
            image = base64.b64decode(asked.image_base64, validate=True)
        except (binascii.Error, ValueError):
            raise Problem(422, "invalid_field", "is not base64 alone, without a data: prefix", "image_base64") from None
    if image is not None and not image:
        raise Problem(422, "no_query", "is empty", "image")
    check_sources(asked, image)
    if asked.image_url is not None and not config.image_url:
        raise Problem(422, "not_offered", "this server fetches nothing for its clients; send the photo itself", "image_url")
    if asked.bundle_digest is not None and asked.embedding is None:
        raise Problem(422, "invalid_field", "belongs to an embedding", "bundle_digest")
    return Query(
        k=check_k(asked.k, config),
        image=image,
        product_id=asked.product_id,
        image_url=asked.image_url,
        embedding=None if asked.embedding is None else tuple(asked.embedding),
        bundle_digest=asked.bundle_digest,
        text=asked.text,
        boxes=check_boxes(asked, image is not None or asked.image_url is not None),
        filters=filters_of(asked),
        explain=asked.explain,
        look=asked.look,
        shopper=Shopper(
            gender=asked.gender,
            price_range=asked.price_range,
            photographs=any(given is not None for given in (image, asked.image_url, asked.embedding)),
        ),
    )


def check_sources(asked: SearchRequest, image: bytes | None) -> None:
    """At most one photo, product or embedding, and something at all. Raises Problem 422."""
    sources = {"image": image, "image_url": asked.image_url, "product_id": asked.product_id, "embedding": asked.embedding}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise Problem(422, "two_queries", f"can't be searched together with {given[0]}", given[1])
    if asked.text is not None and not asked.text.strip():
        raise Problem(422, "no_query", "is empty", "text")
    if not given and asked.text is None:
        detail = "nothing to search with: send image, image_base64, text, product_id or embedding"
        raise Problem(422, "no_query", detail, "image")


def check_boxes(asked: SearchRequest, has_photo: bool) -> tuple[Box, ...]:
    """The parts of the photo to search. Raises Problem 422."""
    if asked.box is not None and asked.boxes is not None:
        raise Problem(422, "invalid_field", "can't be given together with box", "boxes")
    boxes = (asked.box,) if asked.box is not None else tuple(asked.boxes or ())
    if boxes and not has_photo:
        raise Problem(422, "invalid_field", "needs a photo", "box" if asked.box is not None else "boxes")
    return boxes


def check_k(k: int | None, config: ServeConfig) -> int:
    """`k` as asked, or the default. Raises Problem 422."""
    k = config.default_k if k is None else k
    if not 1 <= k <= config.max_k:
        raise Problem(422, "invalid_field", f"must be from 1 to {config.max_k}", "k")
    return k


def filters_of(asked: SearchRequest) -> Filters | None:
    """Filters and category in one; none = all products."""
    if asked.filters is None and asked.category is None:
        return None
    given = asked.filters.model_dump() if asked.filters else {}
    category = asked.category.strip("/") if asked.category else None
    return Filters(**given, category=category)
