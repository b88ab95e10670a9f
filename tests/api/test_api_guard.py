"""Limits on bytes, form and fields, over a real socket: what is refused, with which status, naming which field."""

import base64
import dataclasses
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from live_app import live

from serve.api import guard, problems, queries
from serve.api.metrics import Metrics
from serve.api.observe import Observe
from serve.api.problems import MEDIA_TYPE
from serve.api.url_photos import UrlPhotos
from serve.settings import ServeConfig

CONFIG = ServeConfig(max_body_bytes=3_000_000, body_timeout_s=0.5, max_k=50)
PHOTO = b"\xff\xd8\xff" + bytes(range(256)) * 8
SECRET = "sEcReT-value-of-the-client"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The guard alone: answers with the query it read."""
    app = FastAPI()
    app.add_middleware(guard.SecurityHeaders)
    app.add_middleware(Observe, metrics=Metrics())
    problems.install(app)

    @app.post("/v1/search")
    async def search(request: Request) -> dict[str, Any]:
        query = dataclasses.asdict(await guard.read_query(request, CONFIG, UrlPhotos(1_000, 1.0)))
        query["image"] = None if query["image"] is None else base64.b64encode(query["image"]).decode()
        query["shopper"].pop("now")
        query.pop("filters") if query["filters"] is None else query["filters"].pop("without")
        return query

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError(SECRET)

    with live(app) as address:
        yield address


def refused(response: httpx.Response, status: int, field: str | None = None, code: str | None = None) -> None:
    """`response` is problem JSON of `status` about `field`, and small."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert body["status"] == status
    assert body["title"] and body["detail"] and body["type"]
    assert field is None or field in [error["field"] for error in body["errors"]], body
    assert code is None or body["code"] == code
    assert len(response.content) < 1_000
    assert SECRET not in response.text


def as_json(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/search", json=fields)


def as_form(url: str, files: Any = None, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/search", files=files or {"image": ("name.jpg", PHOTO, "image/jpeg")}, data=fields)


def test_every_way_to_send_a_photo_gives_the_same_query(url: str) -> None:
    encoded = base64.b64encode(PHOTO).decode()
    filters = {"price_min": None, "price_max": 50.0, "gender": None, "brand": "Luma", "available": None}
    answers = [
        as_json(url, image_base64=encoded, k=7, box=[1, 2, 30, 40], category="a/b", filters={"price_max": 50, "brand": "Luma"}),
        as_form(url, k="7", box="1,2,30,40", category="a/b", filters='{"price_max": 50, "brand": "Luma"}'),
        httpx.post(
            f"{url}/v1/search",
            params={"k": 7, "box": "1,2,30,40", "category": "a/b", "filters": '{"price_max": 50, "brand": "Luma"}'},
            content=PHOTO,
            headers={"content-type": "image/jpeg"},
        ),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        query = answer.json()
        assert query["image"] == encoded
        assert (query["k"], query["boxes"], query["filters"]) == (7, [[1, 2, 30, 40]], {**filters, "category": "a/b"})


def test_texts_boxes_and_embeddings_come_in_both_forms(url: str) -> None:
    encoded = base64.b64encode(PHOTO).decode()
    boxes = [[1, 2, 30, 40], [5, 5, 50, 50]]
    for answer in (
        as_json(url, image_base64=encoded, text="but red", boxes=boxes),
        as_form(url, text="but red", boxes=str(boxes)),
    ):
        query = answer.json()
        assert (query["image"], query["text"], query["boxes"]) == (encoded, "but red", boxes)
    device = {"embedding": [0.6, -0.8], "bundle_digest": "abc"}
    form = {"embedding": (None, "[0.6, -0.8]"), "bundle_digest": (None, "abc")}
    for answer in (as_json(url, **device), httpx.post(f"{url}/v1/search", files=form)):
        assert {name: answer.json()[name] for name in device} == device


def test_a_product_is_a_query_and_k_has_a_default(url: str) -> None:
    query = as_json(url, product_id="p1").json()
    assert (query["product_id"], query["image"], query["k"]) == ("p1", None, CONFIG.default_k)


@pytest.mark.parametrize("k", [0, -1, 51, 10**20])
def test_k_out_of_range(url: str, k: int) -> None:
    refused(as_json(url, product_id="p", k=k), 422, "k")
    refused(as_form(url, k=str(k)), 422, "k")


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({}, "image", "no_query"),
        ({"k": 5}, "image", "no_query"),
        ({"image_base64": ""}, "image", "no_query"),
        ({"image_base64": "data:image/jpeg;base64,AAAA"}, "image_base64", "invalid_field"),
        ({"image_base64": "AAAA", "product_id": "p"}, "product_id", "two_queries"),
        ({"product_id": "p", "box": [0, 0, 5, 5]}, "box", "invalid_field"),
        ({"image_base64": "AAAA", "box": [5, 0, 5, 5]}, "box", "invalid_field"),
        ({"image_base64": "AAAA", "box": [0, 0, 5]}, "box.3", "invalid_field"),
        ({"product_id": "p", "k": "5"}, "k", "invalid_field"),
        ({"product_id": "p", "k": 2.5}, "k", "invalid_field"),
        ({"product_id": "p", "filters": {"price_max": -1}}, "filters.price_max", "invalid_field"),
        ({"product_id": "p", "filters": {"color": SECRET}}, "filters.color", "invalid_field"),
        ({"product_id": "p", "colour": SECRET}, "colour", "invalid_field"),
        ({"product_id": "p", f"{SECRET} <b>": 1}, "?", "invalid_field"),
        ({"product_id": 7, "explain": SECRET}, "explain", "invalid_field"),
        ({"text": " "}, "text", "no_query"),
        ({"text": "x" * 1001}, "text", "invalid_field"),
        ({"image_url": f"https://{SECRET}"}, "image_url", "not_offered"),
        ({"image_url": f"https://{SECRET}", "image_base64": "AAAA"}, "image_url", "two_queries"),
        ({"embedding": [0.5, 0.5]}, "embedding", "invalid_field"),
        ({"embedding": []}, "embedding", "invalid_field"),
        ({"embedding": [1.0, "0"]}, "embedding.1", "invalid_field"),
        ({"embedding": [1.0], "product_id": "p"}, "embedding", "two_queries"),
        ({"embedding": [1.0], "boxes": [[0, 0, 9, 9]]}, "boxes", "invalid_field"),
        ({"product_id": "p", "bundle_digest": SECRET}, "bundle_digest", "invalid_field"),
        ({"image_base64": "AAAA", "boxes": []}, "boxes", "invalid_field"),
        ({"image_base64": "AAAA", "boxes": [[0, 0, 9, 9]] * 21}, "boxes", "invalid_field"),
        ({"image_base64": "AAAA", "boxes": [[9, 0, 9, 9]]}, "boxes", "invalid_field"),
        ({"image_base64": "AAAA", "boxes": [[0, 0, 9, 9]], "box": [0, 0, 9, 9]}, "boxes", "invalid_field"),
        ({"product_id": "p", "gender": 7}, "gender", "invalid_field"),
        ({"product_id": "p", "price_range": [9, 1]}, "price_range", "invalid_field"),
        ({"product_id": "p", "price_range": [-1, 1]}, "price_range", "invalid_field"),
        ({"product_id": "p", "look": "yes"}, "look", "invalid_field"),
    ],
)
def test_wrong_fields_are_named_and_never_echoed(url: str, fields: dict[str, Any], field: str, code: str) -> None:
    refused(as_json(url, **fields), 422, field, code)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"k": NaN, "product_id": "p"}',
        b'{"embedding": [NaN]}',
        b'{"embedding": [Infinity]}',
    ],
)
def test_broken_json(url: str, body: bytes) -> None:
    refused(httpx.post(f"{url}/v1/search", content=body, headers={"content-type": "application/json"}), 422)


def test_broken_forms(url: str) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    post = f"{url}/v1/search"
    refused(httpx.post(post, content=b"no parts", headers=form), 422, "body")
    refused(httpx.post(post, content=b"--x\r\n", headers={"content-type": "multipart/form-data"}), 422, "body", "bad_multipart")
    refused(as_form(url, files={"photo": ("a.jpg", PHOTO)}), 422, "body")
    refused(as_form(url, files=[("image", ("a.jpg", PHOTO)), ("image", ("b.jpg", PHOTO))]), 422, "body")
    refused(httpx.post(post, files={"image": (None, "text")}), 422, "image")
    refused(as_form(url, k=["1", "2"]), 422, "body")
    refused(as_form(url, box="a,b,c,d"), 422, "box.0")
    refused(as_form(url, filters="{"), 422, "filters")
    refused(as_form(url, boxes="1,2,3,4"), 422, "boxes")
    refused(as_form(url, boxes="[[1,2,3]]"), 422, "boxes.0.3")
    refused(as_form(url, embedding="[1.0]"), 422, "embedding", "two_queries")
    refused(as_form(url, colour="red"), 422, "colour")
    refused(httpx.post(post, params=[("k", 1), ("k", 2)], content=PHOTO, headers={"content-type": "image/png"}), 422, "query")


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded", ""])
def test_unknown_media_types(url: str, media_type: str) -> None:
    refused(httpx.post(f"{url}/v1/search", content=b"x", headers={"content-type": media_type}), 415, "content-type")


def test_a_declared_length_over_the_limit_is_refused_before_it_is_read(url: str) -> None:
    started = time.perf_counter()
    refused(httpx.post(f"{url}/v1/search", content=bytes(3_000_001), headers={"content-type": "image/jpeg"}), 413, "body")
    assert time.perf_counter() - started < 1.0


def test_an_undeclared_length_is_counted(url: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(100_000)

    refused(httpx.post(f"{url}/v1/search", content=chunks(), headers={"content-type": "image/jpeg"}), 413, "body")


def test_a_slow_body_is_cut(url: str) -> None:
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
        head = "POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode() + b"a")
        started = time.perf_counter()
        assert b" 408 " in connection.recv(100)
        assert time.perf_counter() - started < 2.0


def test_an_upload_never_becomes_a_file(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part over Starlette's 1 MB would be rolled into a temporary file; making files impossible shows that none is made."""
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    monkeypatch.setattr("tempfile._TemporaryFileWrapper", None)
    photo = bytes(2_900_000)
    answer = as_form(url, files={"image": ("x", photo)})
    assert answer.status_code == 200
    assert len(base64.b64decode(answer.json()["image"])) == len(photo)


def test_bugs_and_unknown_paths_are_problems_without_inner_details(url: str) -> None:
    refused(httpx.get(f"{url}/bug"), 500, code="bug")
    refused(httpx.get(f"{url}/nothing/here"), 404, code="not_found")
    response = httpx.get(f"{url}/v1/search")
    refused(response, 405)
    assert response.headers["allow"] == "POST"


def test_protective_headers_are_on_every_answer(url: str) -> None:
    for response in (as_json(url, product_id="p"), httpx.get(f"{url}/nothing")):
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["k", "box", "boxes", "filters", "category", "image_base64", "product_id", "explain", "text", "embedding"]
) | st.text(max_size=12)


@given(st.dictionaries(NAMES, JSON_VALUES, max_size=6))
def test_any_json_is_a_query_or_a_problem(fields: dict[str, Any]) -> None:
    try:
        query = queries.check_query(queries.parse_json(json.dumps(fields).encode()), None, CONFIG)
    except problems.Problem as problem:
        assert 400 <= problem.body.status < 500
        assert len(problem.response().body) < 20_000
    else:
        assert 1 <= query.k <= CONFIG.max_k
        sources = (query.image, query.product_id, query.embedding, query.image_url)
        assert sum(source is not None for source in sources) + (query.text is not None) >= 1
        assert sum(source is not None for source in sources) <= 1
