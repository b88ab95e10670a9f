"""The first thing a query meets: limits on its bytes, its form and its fields, before any work is done for it.

A body is read into memory with a limit and a clock, and taken apart in memory: nothing of an upload is written to disk
(Starlette's own form parsing spools files over 1 MB into a temporary file).
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.problems import Problem, invalid_fields
from serve.api.queries import Query, check_query, json_object, parse_fields, parse_json
from serve.api.url_photos import UrlPhotos
from serve.settings import ServeConfig

Model = TypeVar("Model", bound=BaseModel)
DROP_S = 0.5  # 11 MB over loopback take 0.02 s

MEDIA_TYPES = "multipart/form-data, application/json or image/*"

# The page loads nothing from anywhere else, and compiles one WebAssembly file of its own (the encoder on the device);
# catalog photos may lie on https hosts.
SECURITY_HEADERS = {
    b"content-security-policy": (
        b"default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' https: blob: data:; object-src 'none'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"permissions-policy": b"camera=(self), microphone=(), geolocation=()",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


async def read_query(request: Request, config: ServeConfig, photos: UrlPhotos) -> Query:
    """The query in `request`, whichever way it was sent, with its photo. Raises Problem: 408, 413, 415, 422."""
    query = await sent_query(request, config)
    if query.image_url is None:
        return query
    return replace(query, image=await photos.fetch(query.image_url), image_url=None)


async def sent_query(request: Request, config: ServeConfig) -> Query:
    """The query as it was sent. Raises Problem: 408, 413, 415, 422."""
    media_type = media_type_of(request)
    is_photo = media_type.startswith("image/") or media_type == "application/octet-stream"
    if not is_photo and media_type not in ("application/json", "multipart/form-data"):
        raise Problem(415, "unsupported_media_type", f"is not offered; send {MEDIA_TYPES}", "content-type")
    body = await read_body(request, config.max_body_bytes, config.body_timeout_s)
    if media_type == "application/json":
        if request.query_params:
            raise Problem(
                422, "invalid_field", "parameters of the URL belong to an image/* body; put them into the JSON", "query"
            )
        return check_query(parse_json(body), None, config)
    if media_type == "multipart/form-data":
        fields, image = await parse_multipart(request.headers, body, config.max_body_bytes)
        return check_query(parse_fields(fields), image, config)
    fields = dict(request.query_params)
    if len(fields) != len(request.query_params.multi_items()):
        raise Problem(422, "invalid_field", "a parameter is given twice", "query")
    return check_query(parse_fields(fields), body, config)


async def read_json(request: Request, config: ServeConfig, model: type[Model]) -> Model:
    """A JSON body, strictly typed. Raises Problem: 408, 413, 415, 422."""
    if media_type_of(request) != "application/json":
        raise Problem(415, "unsupported_media_type", "is not offered; send application/json", "content-type")
    body = await read_body(request, config.max_body_bytes, config.body_timeout_s)
    json_object(body)
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid_fields(error) from None


def media_type_of(request: Request) -> str:
    """What the body says it is, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The body, at most `max_bytes`: the declared length is refused first, then the bytes are counted as they come."""
    close = {"Connection": "close"}
    too_large = Problem(413, "body_too_large", f"more than {max_bytes} bytes", "body", headers=close)
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal():
        raise Problem(400, "bad_content_length", "is not a number", "content-length")
    if int(declared) > max_bytes:
        await drop_rest(request)
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    await drop_rest(request)
                    raise too_large
    except TimeoutError:
        raise Problem(408, "body_timeout", f"did not arrive within {timeout_s:g} s", "body", headers=close) from None
    except ClientDisconnect:
        raise Problem(400, "client_gone", "the connection was closed before the end", "body") from None
    return bytes(body)


async def drop_rest(request: Request) -> None:
    """Reads on for a moment and keeps nothing: a connection closed on a client that still sends loses our answer to it."""
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DROP_S):
            while (await request.receive()).get("more_body", False):
                pass


class MemoryParser(MultiPartParser):
    """Multipart from and to memory: at most one file, a few fields."""

    def __init__(self, headers: Headers, body: bytes, max_bytes: int) -> None:
        async def once() -> AsyncGenerator[bytes, None]:
            yield body

        self.spool_max_size = max_bytes + 1  # a part is smaller than its body, so it never reaches the disk
        super().__init__(headers, once(), max_files=1, max_fields=40, max_part_size=100_000)


async def parse_multipart(headers: Headers, body: bytes, max_bytes: int) -> tuple[dict[str, str], bytes | None]:
    """Fields and the file named `image`. A file's name is never looked at. Raises Problem 422."""
    try:
        form = await MemoryParser(headers, body, max_bytes).parse()
    except (MultiPartException, UnicodeDecodeError):
        raise Problem(422, "bad_multipart", "is not well-formed multipart with one file and few fields", "body") from None
    fields: dict[str, str] = {}
    image = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            content = await value.read()
            await value.close()
            if name != "image":
                raise Problem(422, "invalid_field", "a file is only taken in the field `image`", "body")
            image = content
        elif name in fields:
            raise Problem(422, "invalid_field", "a field is given twice", "body")
        elif name == "image":
            raise Problem(422, "invalid_field", "must be a file", "image")
        else:
            fields[name] = value
    return fields, image


class SecurityHeaders:
    """ASGI middleware: the same protective headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [(n, v) for n, v in SECURITY_HEADERS.items() if n not in present]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.app(scope, receive, send_with_headers)
