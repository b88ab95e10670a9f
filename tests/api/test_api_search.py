"""The interface over a tiny real release: what is answered, by which stage, and what is refused."""

import asyncio
import base64
import dataclasses
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serve.api.cascade import Cascade
from serve.api.problems import MEDIA_TYPE, Problem
from serve.api.queries import Query
from serve.api.schemas import SearchAnswer
from serve.api.served import ServedRelease
from serve.index.manifest import NoMatchEntry
from serve.index.release import Release
from serve.index.search import search_photo
from serve.vision.bundle import Bundle
from serve.vision.fusion import fuse_query
from serve.vision.guarded import GuardedDecoder
from tests.api.tiny_release import NUM_PRODUCTS, RELEASE_ID, TinyRelease, encoded, picture


def search(api: str, photo: bytes, **fields: Any) -> httpx.Response:
    return httpx.post(f"{api}/v1/search", files={"image": ("x.jpg", photo)}, data=fields)


def stranger() -> bytes:
    """A photo that is not in the catalog."""
    return encoded(picture(777))


def test_a_catalog_photo_is_found_by_its_hash(api: str, tiny: TinyRelease) -> None:
    smaller = Image.open(io.BytesIO(tiny.photo("p/03"))).resize((120, 140))
    for photo in (tiny.photo("p/03"), encoded(smaller, quality=70), encoded(smaller.transpose(Image.Transpose.ROTATE_90), "PNG")):
        response = search(api, photo, k=4, explain="true")
        assert response.status_code == 200, response.text
        answer = SearchAnswer.model_validate_json(response.content)
        first = answer.results[0]
        assert (answer.stage, first.product_id, first.match) == ("hash", "p/03", "exact")
        assert first.attributes.title == "Thing 3" and first.attributes.stock == 3 and first.attributes.currency == "EUR"
        assert [r.match for r in answer.results[1:]] == ["similar"] * 3
        assert len({r.product_id for r in answer.results}) == 4
        assert {"hash", "search", "total"} <= answer.timings_ms.keys() and "analyse" not in answer.timings_ms
        assert answer.explain is not None and answer.explain.hash is not None
        assert (answer.crops, answer.partial, answer.no_match) == ([], False, False)
        assert answer.release.id == RELEASE_ID and answer.release.bundle == "tiny"


def test_another_photo_is_searched_by_looks(api: str) -> None:
    response = search(api, stranger(), k=5)
    answer = SearchAnswer.model_validate_json(response.content)
    assert answer.stage == "vector" and len(answer.results) == 5
    scores = [r.score for r in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert {r.match for r in answer.results} == {"similar"}
    assert answer.crops[0].box == (0, 0, 192, 224) and len(answer.crops[0].results) == 5
    assert answer.crops[0].category in ("bags/totes", "shoes/boots")
    assert {"hash", "analyse", "search", "total"} <= answer.timings_ms.keys()
    assert (answer.shards.asked, answer.shards.answered) == (2, 2)
    assert response.headers["cache-control"] == "no-store"


def test_http_answers_like_the_kernel(api: str, tiny: TinyRelease, served: ServedRelease) -> None:
    """`search_photo` of the jobs and the asynchronous cascade: the same products with the same scores."""
    release, bundle = Release.open(served.folder), Bundle.load(served.bundle_folder, tiny.settings.runtime)
    with GuardedDecoder(tiny.settings.decode) as decoder:
        for photo in (tiny.photo("p/05"), stranger(), encoded(picture(778, 300), "WEBP")):
            expected = search_photo(photo, release, bundle, decoder, 6)
            answer = SearchAnswer.model_validate_json(search(api, photo, k=6).content)
            assert answer.stage == expected.stage
            assert [r.product_id for r in answer.results] == [r.product_id for r in expected.results]
            assert np.allclose([r.score for r in answer.results], [r.score for r in expected.results], atol=1e-6)


def test_json_and_raw_bodies_answer_like_a_form(api: str) -> None:
    photo = stranger()
    form = search(api, photo, k=3).json()["results"]
    encoded_photo = base64.b64encode(photo).decode()
    assert httpx.post(f"{api}/v1/search", json={"image_base64": encoded_photo, "k": 3}).json()["results"] == form
    raw = httpx.post(f"{api}/v1/search?k=3", content=photo, headers={"content-type": "image/jpeg"})
    assert raw.json()["results"] == form


def test_a_box_searches_that_part_alone(api: str, tiny: TinyRelease) -> None:
    answer = search(api, tiny.photo("p/03"), box="20,30,120,130").json()
    assert answer["stage"] == "vector"
    assert [crop["box"] for crop in answer["crops"]] == [[20, 30, 120, 130]]
    outside = search(api, tiny.photo("p/03"), box="5000,5000,6000,6000")
    assert outside.status_code == 422 and outside.json()["errors"][0]["field"] == "box"


def test_category_and_filters(api: str) -> None:
    answer = search(api, stranger(), k=50, category="shoes").json()
    assert {r["category"] for r in answer["results"]} == {"shoes/boots"} and len(answer["results"]) == NUM_PRODUCTS // 2
    filters = {"price_max": 14, "available": True}
    answer = httpx.post(f"{api}/v1/search", json={"product_id": "p/00", "k": 50, "filters": filters}).json()
    assert sorted(r["product_id"] for r in answer["results"]) == ["p/01", "p/02", "p/04"]
    nothing = search(api, stranger(), filters='{"brand": "Nobody"}').json()
    assert nothing["no_match"] and nothing["results"] == []


def test_more_like_a_product(api: str) -> None:
    answer = httpx.get(f"{api}/v1/products/p/03/similar", params={"k": 50}).json()
    products = [r["product_id"] for r in answer["results"]]
    assert len(products) == NUM_PRODUCTS - 1 and "p/03" not in products
    posted = httpx.post(f"{api}/v1/search", json={"product_id": "p/03", "k": 50}).json()
    assert [r["product_id"] for r in posted["results"]] == products


def test_embeddings_are_those_of_the_catalog(api: str, tiny: TinyRelease, served: ServedRelease) -> None:
    answer = httpx.post(f"{api}/v1/embed", files={"image": tiny.photo("p/04")}).json()
    stored = Release.open(served.folder).product_embedding("p/04")
    assert stored is not None and answer["dim"] == 16
    assert np.array_equal(np.float16(answer["crops"][0]["embedding"]), np.float16(stored))
    assert httpx.post(f"{api}/v1/embed", json={"product_id": "p/04"}).status_code == 422


def test_photos_of_the_release_and_nothing_else(api: str, tiny: TinyRelease) -> None:
    first = search(api, tiny.photo("p/07"), k=1).json()["results"][0]
    response = httpx.get(api + first["image_url"])
    assert response.content == tiny.photo("p/07")
    assert response.headers["content-type"] == "image/jpeg" and "immutable" in response.headers["cache-control"]
    image_id = first["image_url"].split("/")[-1].split("?")[0]
    for path in ("abc?product=p/07", f"{image_id}?product=p/08", "..%2F..%2Fetc%2Fpasswd?product=p/07"):
        assert httpx.get(f"{api}/v1/images/{path}").status_code == 404
    assert httpx.get(f"{api}/v1/images/{image_id}").status_code == 422


def test_a_photo_that_was_changed_is_not_shown(api: str, tiny: TinyRelease) -> None:
    url = search(api, tiny.photo("p/11"), k=1).json()["results"][0]["image_url"]
    kept = tiny.photo("p/11")
    try:
        tiny.photos["p/11"].write_bytes(b"root:x:0:0")
        assert httpx.get(api + url).json()["code"] == "photo_changed"
        tiny.photos["p/11"].unlink()
        assert httpx.get(api + url).json()["code"] == "photo_gone"
    finally:
        tiny.photos["p/11"].write_bytes(kept)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"not a photo at all, just words", 415, "image_not_an_image"),
        (b"%PDF-1.7 ...", 415, None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, None),
        (encoded(picture(1))[:900], 422, None),
        (encoded(Image.new("RGB", (8, 8))), 422, "image_too_small"),
        (encoded(Image.new("1", (9000, 9000)), "PNG"), 422, "image_too_many_pixels"),
    ],
)
@pytest.mark.parametrize("box", [{}, {"box": "1,1,90,90"}])
def test_what_is_no_photo(api: str, body: bytes, status: int, code: str | None, box: dict[str, str]) -> None:
    response = search(api, body, **box)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.json()["errors"][0]["field"] == "image"
    assert code is None or response.json()["code"] == code


def test_unknown_product(api: str) -> None:
    for response in (
        httpx.get(f"{api}/v1/products/nobody/similar"),
        httpx.post(f"{api}/v1/search", json={"product_id": "nobody"}),
    ):
        assert (response.status_code, response.json()["code"]) == (404, "unknown_product")
        assert response.json()["errors"][0]["field"] == "product_id"
    assert httpx.get(f"{api}/v1/products/p/03/similar", params={"k": 0}).json()["errors"][0]["field"] == "k"
    assert httpx.get(f"{api}/v1/products/p/03/similar", params={"k": "x"}).status_code == 422


def test_state_and_versions(api: str, served: ServedRelease) -> None:
    assert httpx.get(f"{api}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{api}/readyz").json() == {"status": "ready", "release": RELEASE_ID}
    answer = httpx.get(f"{api}/v1/release").json()
    assert answer["release"]["bundle_digest"] == served.manifest.bundle.digest
    assert answer["counts"]["products"] == NUM_PRODUCTS and answer["tables"] == {"products": 1, "features": 2}
    assert {p["name"]: p["num_shards"] for p in answer["partitions"]} == {"bags": 2, "shoes": 2}
    assert answer["limits"]["max_k"] == 50


def test_the_interface_is_described_whole(api: str) -> None:
    description = httpx.get(f"{api}/openapi.json").json()
    call = description["paths"]["/v1/search"]["post"]
    assert set(call["requestBody"]["content"]) == {"multipart/form-data", "application/json", "image/*"}
    assert {"200", "404", "408", "413", "415", "422", "429", "503"} == set(call["responses"])
    text = str(description)
    names = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= description["components"]["schemas"].keys()
    assert "HTTPValidationError" not in text
    docs = httpx.get(f"{api}/docs")
    assert docs.status_code == 200 and "http://" not in docs.text and "https://" not in docs.text


def test_a_text_is_searched_by_its_embedding(api: str, served: ServedRelease, tiny: TinyRelease) -> None:
    bundle, release = Bundle.load(served.bundle_folder, tiny.settings.runtime), Release.open(served.folder)
    text_D = bundle.encode_texts(["red shoe"])[0]
    expected = [c.product_id for c in release.search(text_D[None], 4)[0]]
    for answer in (
        httpx.post(f"{api}/v1/search", json={"text": "red shoe", "k": 4}).json(),
        httpx.post(f"{api}/v1/search", files={"text": (None, "red shoe"), "k": (None, "4")}).json(),
    ):
        assert [r["product_id"] for r in answer["results"]] == expected
        assert answer["stage"] == "vector" and answer["crops"] == [] and "text" in answer["timings_ms"]


def test_a_text_beside_a_photo_draws_the_answer_to_it(api: str, served: ServedRelease, tiny: TinyRelease) -> None:
    bundle, release = Bundle.load(served.bundle_folder, tiny.settings.runtime), Release.open(served.folder)
    stored_D = release.product_embedding("p/03")
    assert stored_D is not None
    mixed_D = fuse_query(stored_D, bundle.encode_texts(["blue hat"])[0], tiny.settings.serve.text_weight)
    expected = [c.score for c in release.search(mixed_D[None], 4)[0]]
    answer = search(api, tiny.photo("p/03"), k=4, text="blue hat").json()
    assert answer["stage"] == "vector", "another colour of it is not the photo itself"
    assert np.allclose([r["score"] for r in answer["results"]], expected, atol=2e-3)  # stored vectors are rounded
    product = httpx.post(f"{api}/v1/search", json={"product_id": "p/03", "text": "blue hat", "k": 4}).json()
    assert "p/03" not in {r["product_id"] for r in product["results"]}


def test_a_bundle_without_texts_says_so(served: ServedRelease, tiny: TinyRelease, encode: Any, groups: list[Any]) -> None:
    with pytest.raises(Problem) as problem:
        asked(dataclasses.replace(served, has_text=False), tiny, encode, groups, Query(3, text="red"))
    assert (problem.value.body.status, problem.value.body.code) == (422, "not_offered")
    assert "tiny" in problem.value.body.detail


def test_an_embedding_made_on_the_device_answers_like_the_photo(api: str, served: ServedRelease) -> None:
    made = httpx.post(f"{api}/v1/embed", files={"image": stranger()}).json()
    embedding = made["crops"][0]["embedding"]
    by_photo = search(api, stranger(), k=6).json()["results"]
    expected = [c.product_id for c in Release.open(served.folder).search(np.float32([embedding]), 6)[0]]
    sent = {"embedding": embedding, "bundle_digest": made["release"]["bundle_digest"], "k": 6}
    answer = httpx.post(f"{api}/v1/search", json=sent).json()
    assert [r["product_id"] for r in answer["results"]] == expected and expected[0] == by_photo[0]["product_id"]
    for wrong, field in (
        ({"embedding": [1.0]}, "embedding"),
        ({"embedding": [0.5] * 16}, "embedding"),
        ({**sent, "bundle_digest": "0" * 64}, "bundle_digest"),
    ):
        refused = httpx.post(f"{api}/v1/search", json=wrong)
        assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == field


def test_several_boxes_are_crops_of_one_answer(api: str, tiny: TinyRelease) -> None:
    boxes = [[20, 30, 120, 130], [50, 50, 190, 220]]
    answer = search(api, tiny.photo("p/03"), boxes=str(boxes), k=4).json()
    assert [crop["box"] for crop in answer["crops"]] == boxes and len(answer["results"]) == 4
    single = [search(api, tiny.photo("p/03"), box=",".join(map(str, box)), k=4).json()["results"] for box in boxes]
    assert [[r["product_id"] for r in crop["results"]] for crop in answer["crops"]] == [
        [r["product_id"] for r in results] for results in single
    ]
    outside = search(api, tiny.photo("p/03"), boxes="[[20, 30, 120, 130], [5000, 5000, 6000, 6000]]")
    assert outside.status_code == 422 and outside.json()["errors"][0]["field"] == "boxes"


def test_each_result_says_how_it_came_about(api: str, tiny: TinyRelease, served: ServedRelease) -> None:
    shards = {entry.path for _, entry in served.manifest.shards()}
    answer = SearchAnswer.model_validate_json(search(api, tiny.photo("p/03"), k=4, explain="true").content)
    stages = [r.explain.stage for r in answer.results if r.explain]
    assert stages == ["hash", "vector", "vector", "vector"]
    for result in answer.results:
        assert result.explain is not None and result.explain.shard in shards
        assert result.explain.visual == result.score == result.explain.total and result.explain.parts == {}
    assert search(api, tiny.photo("p/03"), k=1).json()["results"][0]["explain"] is None


# ---- lost parts, without a network between ----


async def slow(*_: Any) -> Any:
    await asyncio.sleep(60)


class LostError(Exception):
    """A searcher process that is gone."""


def asked(
    served: ServedRelease, tiny: TinyRelease, encode: Any, groups: list[Any], query: Query | None = None, **settings: Any
) -> SearchAnswer:
    """The answer of a cascade with these parts, for a stranger's photo unless `query` is given."""
    serve = tiny.settings.serve.model_copy(update=settings)
    cascade = Cascade(served, tiny.settings.model_copy(update={"serve": serve}), encode, groups, (LostError,))
    try:
        return asyncio.run(cascade.search(query or Query(5, stranger())))
    finally:
        cascade.close()


def test_a_lost_searcher_is_asked_once_more(served: ServedRelease, tiny: TinyRelease, encode: Any, groups: list[Any]) -> None:
    calls = []

    async def dies_once(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise LostError
        return await groups[1](*args)

    answer = asked(served, tiny, encode, [groups[0], dies_once])
    assert not answer.partial and len(calls) == 2


def test_a_missing_shard_is_a_marked_partial_answer(
    served: ServedRelease, tiny: TinyRelease, encode: Any, groups: list[Any]
) -> None:
    async def dead(*_: Any) -> Any:
        raise LostError

    for missing in (dead, slow):
        answer = asked(served, tiny, encode, [groups[0], missing], Query(9, product_id="p/01"), shard_timeout_s=1.0)
        assert answer.partial and (answer.shards.asked, answer.shards.answered) == (2, 1)
        assert {r.category for r in answer.results} == {"bags/totes"}
        with pytest.raises(Problem) as problem:
            asked(served, tiny, encode, [missing], shard_timeout_s=1.0)
        assert problem.value.body.status == 503


def test_each_partition_has_its_own_threshold(served: ServedRelease, tiny: TinyRelease, encode: Any, groups: list[Any]) -> None:
    """Results are still given: what comes nearest. The photo itself is always a match, and texts have no threshold."""

    def no_match(query: Query, **thresholds: float) -> bool:
        entry = NoMatchEntry(thresholds=thresholds, false_match_frac=0.05, lost_frac=0.0)
        manifest = served.manifest.model_copy(update={"no_match": entry})
        cascade = Cascade(dataclasses.replace(served, manifest=manifest), tiny.settings, encode, groups)
        try:
            answer = asyncio.run(cascade.search(query))
        finally:
            cascade.close()
        assert len(answer.results) == 3
        return answer.no_match

    foreign = stranger()
    assert not no_match(Query(3, image=foreign), bags=-1.0, shoes=-1.0)
    assert no_match(Query(3, image=foreign), bags=1.0, shoes=1.0)
    assert not no_match(Query(3, image=tiny.photo("p/03")), bags=1.0, shoes=1.0)
    assert not no_match(Query(3, text="boots"), bags=1.0, shoes=1.0)


def test_nothing_good_enough_is_no_match(served: ServedRelease, tiny: TinyRelease, encode: Any, groups: list[Any]) -> None:
    answer = asked(served, tiny, encode, groups, min_score=0.99999)
    assert answer.no_match and answer.results == [] and answer.crops[0].results == []
