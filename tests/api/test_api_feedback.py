"""Impressions, clicks and purchases over HTTP, as rows that the learned ranking reads; and the calls of the judging page."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from jobs.clicks.sessions import sessions_of
from jobs.evaluation.judgments import Judgments
from serve.api.cascade import Cascade
from serve.api.feedback import VALID_S, Feedback
from serve.api.host import Host
from serve.api.metrics import Metrics
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.index.judging import write_pool
from serve.settings import Settings
from serve.vision.image import image_id_of
from tests.api.live_app import live, until_there
from tests.api.tiny_release import TinyRelease, encoded, picture


@pytest.fixture
def settings(tiny: TinyRelease, tmp_path: Path) -> Settings:
    """Those of the tiny release, with feedback, tables of their own and every answer in an order drawn by lot."""
    serve = tiny.settings.serve.model_copy(
        update={"feedback": True, "feedback_per_min": 120.0, "client_header": "x-forwarded-for"}
    )
    store = tiny.settings.store.model_copy(update={"tables": str(tmp_path / "tables"), "root": tmp_path})
    ranking = tiny.settings.ranking.model_copy(update={"shuffled_frac": 1.0})
    return tiny.settings.model_copy(update={"serve": serve, "store": store, "ranking": ranking})


@pytest.fixture
def url(served: ServedRelease, settings: Settings, encode: Any, groups: Any) -> Iterator[str]:
    with live(create_app(Host(Cascade(served, settings, encode, groups)), Metrics())) as url:
        until_there(url)
        yield url


def rows_of(settings: Settings, table: str) -> pa.Table:
    return DeltaTable(f"{settings.store.tables}/{table}").to_pyarrow_table()


def click(url: str, query_id: str, product_id: str, kind: str = "click", **more: Any) -> httpx.Response:
    body = {"events": [{"query_id": query_id, "product_id": product_id, "kind": kind}], **more.pop("body", {})}
    return httpx.post(f"{url}/v1/feedback", json=body, **more)


def test_what_was_shown_and_clicked_is_what_the_ranking_learns_from(url: str, settings: Settings) -> None:
    answers = [
        httpx.post(f"{url}/v1/search", files={"image": encoded(picture(900 + n))}, data={"k": "4"}).json() for n in range(6)
    ]
    for answer in answers:
        wanted = answer["results"][1]["product_id"]
        assert click(url, answer["query_id"], wanted).json() == {"stored": 1, "repeated": 0}
        assert click(url, answer["query_id"], wanted).json() == {"stored": 0, "repeated": 1}, "sent twice, it counts once"
    assert click(url, answers[0]["query_id"], answers[0]["results"][2]["product_id"], "purchase").status_code == 200
    assert click(url, answers[1]["query_id"], "never-shown").status_code == 200
    feedback = rows_of(settings, "feedback")
    assert sorted(set(feedback["kind"].to_pylist())) == ["click", "impression", "purchase"]
    sessions = sessions_of(feedback, purchase_gain=3.0, max_clicks_per_client=100)
    assert len(sessions) == 6 and sessions.shown_SL.sum() == 24, "impressions were on the disk before the click was acknowledged"
    assert (sessions.gains_SL[:, 1] == 1.0).all() and sessions.gains_SL.sum() == 6 + 3, "what was never shown teaches nothing"
    assert sessions.shuffled_S.all()
    scores = [[result["score"] for result in answer["results"]] for answer in answers]
    assert any(one != sorted(one, reverse=True) for one in scores), "by lot, one of 24^6 times all six are in order"
    assert sessions_of(feedback, 3.0, max_clicks_per_client=2).clicked_SL.any(axis=1).sum() == 2, "nobody teaches alone"
    told = str(feedback.to_pydict())
    assert "127.0.0.1" not in told and "image" not in feedback.column_names


def test_clients_are_digests_of_today(url: str, settings: Settings) -> None:
    answer = httpx.post(f"{url}/v1/search", json={"product_id": "p/03"}).json()
    shown = [result["product_id"] for result in answer["results"]]
    for number, address in enumerate(["192.0.2.1", "9.9.9.9, 192.0.2.1", "192.0.2.7"]):  # the last one is our own proxy's word
        assert click(url, answer["query_id"], shown[number], headers={"x-forwarded-for": address}).status_code == 200
    feedback = rows_of(settings, "feedback")
    clients = [client for client in feedback["client"].to_pylist() if client]
    assert len(clients) == 3 and len(set(clients)) == 2 and "192.0.2" not in str(clients)


def test_ids_that_were_not_given(url: str, settings: Settings) -> None:
    query_id = httpx.post(f"{url}/v1/search", json={"product_id": "p/03"}).json()["query_id"]
    for wrong in (query_id[:-1] + ("0" if query_id[-1] != "0" else "1"), "ab.cd.ef", "0" + query_id):
        refused = click(url, wrong, "p/04")
        assert (refused.status_code, refused.json()["code"]) == (422, "unknown_query")
    signer = Feedback(settings.store, settings.serve, 0.0)  # another replica: the same secret
    assert click(url, signer.sign("aa", int(time.time())), "p/04").status_code == 200
    assert click(url, signer.sign("aa", int(time.time()) - VALID_S - 5), "p/04").json()["code"] == "expired_query"
    for body in ({}, {"events": []}, {"events": [{"query_id": query_id, "product_id": "x", "kind": "like"}]}):
        assert httpx.post(f"{url}/v1/feedback", json=body).status_code == 422
    assert httpx.post(f"{url}/v1/feedback", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert httpx.post(f"{url}/v1/feedback", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert (settings.store.root / "feedback.key").stat().st_mode & 0o077 == 0


def test_one_client_says_only_so_much(url: str) -> None:
    query_id = httpx.post(f"{url}/v1/search", json={"product_id": "p/03"}).json()["query_id"]
    answers = [click(url, query_id, "p/04", headers={"x-forwarded-for": "192.0.2.9"}) for _ in range(60)]
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "rate_limited" and int(refused.headers["retry-after"]) >= 1
    assert click(url, query_id, "p/04", headers={"x-forwarded-for": "192.0.2.10"}).status_code == 200


def test_a_server_without_feedback(api: str) -> None:
    assert httpx.get(f"{api}/v1/release").json()["offers"]["feedback"] is False
    assert httpx.post(f"{api}/v1/search", json={"product_id": "p/03"}).json()["query_id"] is None
    assert click(api, "ab.cd.ef", "p/04").status_code == 404


def test_judging_is_blind_and_newest_counts(url: str, settings: Settings, tiny: TinyRelease) -> None:
    assert httpx.get(f"{url}/v1/judgments/next", params={"rater": "ann"}).json()["total"] == 0
    photos = {image_id_of(tiny.photo(name)): tiny.photos[name] for name in ("p/00", "p/01")}
    write_pool(settings.store.root, "r1", {image_id: (path, ["p/02", "p/03"]) for image_id, path in photos.items()})
    write_pool(settings.store.root, "r2", {image_id: (path, ["p/03", "p/04", "p/gone"]) for image_id, path in photos.items()})
    orders = set()
    for rater in ("ann", "ben", "cem", "dora"):
        task = httpx.get(f"{url}/v1/judgments/next", params={"rater": rater}).json()
        assert (task["done"], task["total"], task["query"]) == (0, 2, min(photos))
        assert sorted(item["product_id"] for item in task["items"]) == ["p/02", "p/03", "p/04"], "what is gone is not asked"
        assert not {"release", "rank", "score"} & {key for item in task["items"] for key in item}
        orders.add(tuple(item["product_id"] for item in task["items"]))
    assert len(orders) > 1, "each rater sees another order"
    assert image_id_of(httpx.get(url + task["query_url"]).content) == task["query"]
    assert httpx.get(f"{url}/v1/judgments/photos/{'0' * 64}").status_code == 404

    def grade(**grades: int) -> httpx.Response:
        named = {f"p/{name[1:]}": number for name, number in grades.items()}
        return httpx.post(f"{url}/v1/judgments", json={"rater": "ann", "query": task["query"], "grades": named})

    assert grade(p02=0, p03=3, p04=1).json() == {"stored": 3}
    assert httpx.get(f"{url}/v1/judgments/next", params={"rater": "ann"}).json()["done"] == 1
    assert grade(p03=2).json() == {"stored": 1}
    judged = Judgments.of_table(rows_of(settings, "judgments"))
    assert judged.by_rater["ann"] == {(task["query"], "p/02"): 0, (task["query"], "p/03"): 2, (task["query"], "p/04"): 1}
    assert grade(p09=1).json()["code"] == "not_in_pool"
    assert grade(p02=4).status_code == 422
    assert httpx.get(f"{url}/v1/judgments/next", params={"rater": "no spaces"}).status_code == 422
