"""PUT and DELETE /v1/products/{id}: what is read from the request, and what is answered once it is durable."""

import base64
import binascii
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import ValidationError

from serve.api import guard
from serve.api.cascade import Cascade
from serve.api.changes import Change
from serve.api.openapi import product_body, refusals
from serve.api.photos import kind_of
from serve.api.problems import Problem, invalid_fields
from serve.api.product_schemas import ProductChange, ProductChanged
from serve.api.queries import json_object
from serve.index.inserts import CHANGE, DELETE, PUT, Row
from serve.index.manifest import write_durably
from serve.settings import ServeConfig
from serve.vision.bundle import CropFeatures
from serve.vision.hash import Fingerprint
from serve.vision.image import image_id_of

InTime = Callable[[Callable[[Cascade], Awaitable[Row]]], Awaitable[Row]]
MAX_ID_CHARS = 256  # as in a feed


def add_product_routes(app: FastAPI, config: ServeConfig, in_time: InTime) -> None:
    """The two calls, on `app`."""

    @app.put(
        "/v1/products/{product_id:path}",
        response_model=ProductChanged,
        responses=refusals(404, 408, 413, 415, 422, 429, 503),
        openapi_extra=product_body(),
    )
    async def put(product_id: str, request: Request) -> Response:
        """Adds a product with its photo, or changes what is given; without a photo the photos stay, and nothing is embedded."""
        check_id(product_id)
        asked, photo = await read_change(request, config)
        row = await in_time(lambda cascade: put_product(cascade, product_id, asked, photo))
        return answered(row)

    @app.delete("/v1/products/{product_id:path}", response_model=ProductChanged, responses=refusals(404, 422, 429, 503))
    async def delete(product_id: str) -> Response:
        """From now on the product is not found any more."""
        check_id(product_id)
        return answered(await in_time(lambda cascade: cascade.changes.add(Change(product_id, DELETE, {}))))


def check_id(product_id: str) -> None:
    """An id that a feed may have as well. Raises Problem 422."""
    if not 0 < len(product_id) <= MAX_ID_CHARS or any(ord(char) < 32 or ord(char) == 127 for char in product_id):
        raise Problem(422, "invalid_field", f"must be 1 to {MAX_ID_CHARS} characters, none of them a control", "product_id")


def answered(row: Row) -> Response:
    """What was stored, in short."""
    photos = len({crop["image_id"] for crop in row["crops"] or ()})
    body = ProductChanged(product_id=row["product_id"], kind=row["kind"], photos=photos, at=row["at"])
    return Response(body.model_dump_json(), media_type="application/json", headers={"Cache-Control": "no-store"})


async def read_change(request: Request, config: ServeConfig) -> tuple[ProductChange, bytes | None]:
    """The attributes that were sent, and the photo. Raises Problem 408, 413, 415, 422."""
    media_type = guard.media_type_of(request)
    if media_type not in ("application/json", "multipart/form-data"):
        raise Problem(
            415, "unsupported_media_type", "is not offered; send multipart/form-data or application/json", "content-type"
        )
    body = await guard.read_body(request, config.max_body_bytes, config.body_timeout_s)
    image = None
    try:
        if media_type == "application/json":
            json_object(body)
            asked = ProductChange.model_validate_json(body, strict=True)
        else:
            fields, image = await guard.parse_multipart(request.headers, body, config.max_body_bytes)
            asked = ProductChange.model_validate(fields)
    except ValidationError as error:
        raise invalid_fields(error) from None
    if asked.image_base64 is not None:
        try:
            image = base64.b64decode(asked.image_base64, validate=True)
        except (binascii.Error, ValueError):
            raise Problem(422, "invalid_field", "is not base64 alone, without a data: prefix", "image_base64") from None
    if image is None and asked.image_uri is not None:
        raise Problem(422, "invalid_field", "says where the catalog keeps a photo that is sent along", "image_uri")
    return asked, image


async def put_product(cascade: Cascade, product_id: str, asked: ProductChange, photo: bytes | None) -> Row:
    """Embeds the photo, if there is one, and stores the change."""
    attributes = asked.model_dump(exclude_unset=True, exclude={"image_base64", "image_uri"})
    if attributes.get("stock") is not None and "available" not in attributes:
        attributes["available"] = attributes["stock"] > 0
    if photo is None:
        return await cascade.changes.add(Change(product_id, CHANGE, attributes))
    fingerprint = await cascade.hashes.fingerprint(photo)
    crops = await cascade.towers.photo(photo, (), may_wait=True)
    uri = asked.image_uri
    if uri is None:
        uri = await cascade.in_thread(keep_photo, cascade.photos_folder, photo)
    return await cascade.changes.add(Change(product_id, PUT, attributes, photo_rows(photo, uri, fingerprint, crops)))


def keep_photo(folder: Path, photo: bytes) -> str:
    """Keeps a catalog photo that lies nowhere else under the digest of its bytes; its URI."""
    path = folder / f"{image_id_of(photo)}.{kind_of(photo).removeprefix('image/')}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, photo)
    return path.as_uri()


def photo_rows(photo: bytes, uri: str, fingerprint: Fingerprint, crops: list[CropFeatures]) -> list[Row]:
    """One row of inserts.CROP for each crop of the product's one photo."""
    rows = []
    for number, found in enumerate(crops):
        x0, y0, x1, y1 = found.crop.box
        first = number == 0
        rows.append(
            {"position": 0, "image_uri": uri, "image_id": image_id_of(photo), "crop": number}
            | {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "embedding": found.embedding.astype(np.float16).tobytes()}
            | {"hash": fingerprint.hashes[0].tobytes() if first else None}
            | {"colour": fingerprint.colours[0].tobytes() if first else None}
        )
    return rows
