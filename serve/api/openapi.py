"""The interface description at /openapi.json: what FastAPI can't see by itself, because the guard reads bodies in its own way."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.api.problems import MEDIA_TYPE, ProblemBody
from serve.api.product_schemas import ProductChange
from serve.api.schemas import FeedbackRequest, FilterFields, JudgmentRequest, SearchRequest

DESCRIPTION = (
    "What is this, and what looks like it? Send a photo, or name a product, and get the best k distinct products. "
    "Photos are kept in memory only, and only while they are searched. Every error is RFC 9457 problem JSON that names the field."
)
MEANINGS = {
    404: "There is no such thing in this release",
    408: "The body did not arrive in time",
    413: "The body or the photo has too many bytes",
    415: "A media type that is not taken, or bytes that are no photo",
    422: "A field is wrong; `errors` names it",
    429: "More queries than this server takes at once; try again after `Retry-After` seconds",
    503: "Not ready, or no answer in time; try again after `Retry-After` seconds",
}
TEMPLATE = "#/components/schemas/{model}"
Json = dict[str, Any]
JSON_BODIES = (SearchRequest, ProductChange, FeedbackRequest, JudgmentRequest)


def refusals(*codes: int) -> dict[int | str, Json]:
    """The problems a call may answer."""
    content = {MEDIA_TYPE: {"schema": {"$ref": TEMPLATE.format(model=ProblemBody.__name__)}}}
    return {code: {"description": MEANINGS[code], "content": content} for code in codes}


def search_body() -> Json:
    """The ways to send a query to POST /v1/search."""
    fields = SearchRequest.model_json_schema(ref_template=TEMPLATE)["properties"]
    photo = {"type": "string", "format": "binary", "description": "the photo: JPEG, PNG, WebP or GIF"}
    as_text = {
        "box": {"type": "string", "description": "x0,y0,x1,y1 in pixels of the upright photo"},
        "price_range": {"type": "string", "description": "lowest,highest"},
        "boxes": {"type": "string", "description": "several boxes as JSON text: [[x0,y0,x1,y1], ...]"},
        "embedding": {"type": "string", "description": "the unit vector as JSON text: [0.1, ...]"},
        "filters": {"type": "string", "description": 'FilterFields as JSON text, such as {"price_max": 50}'},
    }
    form = {"image": photo, **fields, **as_text}
    del form["image_base64"]
    content = {
        "multipart/form-data": {"schema": {"type": "object", "properties": form, "additionalProperties": False}},
        "application/json": {"schema": {"$ref": TEMPLATE.format(model=SearchRequest.__name__)}},
        "image/*": {"schema": {**photo, "description": "the photo alone; every other field is a parameter of the URL"}},
    }
    return {"requestBody": {"required": True, "content": content}}


def product_body() -> Json:
    """The ways to send a product to PUT /v1/products/{product_id}."""
    fields = ProductChange.model_json_schema(ref_template=TEMPLATE)["properties"]
    form = {"image": {"type": "string", "format": "binary", "description": "its photo"}, **fields}
    del form["image_base64"]
    content = {
        "multipart/form-data": {"schema": {"type": "object", "properties": form, "additionalProperties": False}},
        "application/json": {"schema": {"$ref": TEMPLATE.format(model=ProductChange.__name__)}},
    }
    return {"requestBody": {"required": True, "content": content}}


def body_of(model: type[BaseModel]) -> Json:
    """A JSON body of this shape, which is one of JSON_BODIES."""
    assert model in JSON_BODIES
    schema = {"$ref": TEMPLATE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> None:
    """Make `app` answer /openapi.json with every shape it takes and gives."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
            ours = models_json_schema(
                [(model, "validation") for model in (*JSON_BODIES, FilterFields, ProblemBody)], ref_template=TEMPLATE
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(ours[1]["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
