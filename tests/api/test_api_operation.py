"""Keys, rates, room, metrics, logs and the recall probe: what runs beside the queries."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray.serve._private.http_util import (
    parse_disconnect_disabled_header,
    parse_request_timeout_header,
    validate_http_proxy_callback_return,
)
from ray.serve._private.utils import call_function_from_import_path

from serve.api.access import Bucket, Keys, key_digest
from serve.api.cascade import Cascade
from serve.api.client_headers import CALLBACK, middlewares
from serve.api.host import Host
from serve.api.logs import JsonLines, about_request
from serve.api.metrics import PREFIX, Metrics, exposition
from serve.api.probe import RecallProbe, recall
from serve.api.problems import Problem
from serve.api.queries import Query
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.api.shard_searcher import ShardSearcher
from serve.api.towers import AskEncoder
from serve.index.release import Candidate
from serve.settings import ApiKey, Settings
from tests.api.live_app import live
from tests.api.tiny_release import RELEASE_ID, TinyRelease, encoded, picture
from tests.parts import ROOT

KEY, SLOW_KEY = "vs_key-of-the-page", "vs_key-of-a-crawler"
KEYS = (
    ApiKey(name="page", sha256=key_digest(KEY)),
    ApiKey(name="crawler", sha256=key_digest(SLOW_KEY), rate_per_s=0.5),
)


def wait_until(true: Callable[[], bool]) -> None:
    """Looks ten times a second, for a minute at most."""
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    pytest.fail("it did not come true within a minute")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def lines() -> Iterator[list[dict[str, Any]]]:
    """What the server logs, as the JSON lines it writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    parsed = Lines(stream)
    ours = logging.getLogger("serve")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield parsed
    ours.removeHandler(handler)
    ours.setLevel(level)


class Lines(list):  # type: ignore[type-arg]
    """The lines of a stream, read again at each look."""

    def __init__(self, stream: io.StringIO) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([json.loads(line) for line in self.stream.getvalue().splitlines()])


@pytest.fixture(scope="module")
def guarded(served: ServedRelease, tiny: TinyRelease, encode: Any, groups: Any, lines: list[dict[str, Any]]) -> Iterator[str]:
    """The interface with keys, with room for two queries, and with every vector answer probed."""
    serve = tiny.settings.serve.model_copy(update={"api_keys": KEYS, "max_ongoing_requests": 1, "max_queued_requests": 1})
    counted = Metrics()
    cascade = Cascade(served, tiny.settings.model_copy(update={"serve": serve}), encode, groups)
    release_id = served.manifest.release_id
    searchers = [ShardSearcher(tiny.settings, release_id, group) for group in range(len(served.shard_groups))]
    exact = [partial(searcher.search_exactly, release_id) for searcher in searchers]
    cascade.probe = RecallProbe(exact, 1.0, counted)
    with live(create_app(Host(cascade), counted)) as url:
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        yield url


def scrape(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of /metrics."""
    text = httpx.get(f"{url}/metrics", headers=bearer(KEY)).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: dict[Any, float], name: str, **labels: str) -> float:
    return samples.get((f"{PREFIX}_{name}", tuple(sorted(labels.items()))), 0.0)


# ---- keys and rates ----


@pytest.mark.parametrize("headers", [{}, bearer("vs_wrong"), {"authorization": KEY}, {"x-api-key": ""}])
def test_without_a_key_nothing_is_searched(guarded: str, tiny: TinyRelease, headers: dict[str, str]) -> None:
    for answer in (
        httpx.post(f"{guarded}/v1/search", files={"image": tiny.photo("p/03")}, headers=headers),
        httpx.get(f"{guarded}/v1/products/p/03/similar", headers=headers),
        httpx.get(f"{guarded}/v1/release", headers=headers),
        httpx.get(f"{guarded}/metrics", headers=headers),
    ):
        assert (answer.status_code, answer.json()["code"]) == (401, "no_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/docs", "/page/search.js", "/openapi.json", "/healthz", "/readyz"):
        assert httpx.get(guarded + path, headers=headers).status_code == 200


def test_with_a_key(guarded: str, tiny: TinyRelease) -> None:
    for headers in (bearer(KEY), {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}):
        answer = httpx.post(f"{guarded}/v1/search", files={"image": tiny.photo("p/03")}, headers=headers)
        assert answer.status_code == 200
    picture_url = guarded + answer.json()["results"][0]["image_url"]
    assert httpx.get(picture_url).status_code == 200, "pictures on the page can't bring a key"


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared does not depend on the key that is given."""
    compared: list[str] = []
    monkeypatch.setattr("serve.api.access.hmac.compare_digest", lambda known, given: compared.append(known) or known == given)
    from starlette.datastructures import Headers

    assert Keys(KEYS).owner(Headers(bearer(KEY))).name == "page"
    with pytest.raises(Problem):
        Keys(KEYS).owner(Headers(bearer("vs_wrong")))
    assert compared == [key.sha256 for key in KEYS] * 2


def test_a_rate_is_kept(guarded: str) -> None:
    url = f"{guarded}/v1/products/p/03/similar"
    answers = [httpx.get(url, headers=bearer(SLOW_KEY)) for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 429, 429, 429, 429]
    assert answers[1].json()["code"] == "rate_limited" and 1 <= int(answers[1].headers["retry-after"]) <= 2
    assert httpx.get(url, headers=bearer(KEY)).status_code == 200, "another key is not held back"


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    bucket = Bucket(4.0, lambda: now[0])
    assert [bucket.wait_s() for _ in range(5)] == [0.0, 0.0, 0.0, 0.0, 0.25]
    now[0] = 0.25
    assert (bucket.wait_s(), bucket.wait_s()) == (0.0, 0.25)
    now[0] = 100.0
    assert [bucket.wait_s() for _ in range(5)].count(0.0) == 4, "a long pause saves up one second's worth"


def test_a_made_key_fits_what_the_settings_keep(tiny: TinyRelease) -> None:
    command = [sys.executable, "-m", "serve.api.access", "shop-page"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    key = re.search(r"Bearer (\S+)", said)
    entry = yaml.safe_load(said[said.index("  - {") :])
    assert key is not None and entry[0]["sha256"] == key_digest(key[1])
    settings = Settings.load(tiny.conf, [f"serve.api_keys={json.dumps(entry)}"])
    assert settings.serve.api_keys[0].name == "shop-page" and key[1] not in str(settings)


# ---- room ----


def test_too_much_at_once_is_told_to_come_back(guarded: str) -> None:
    photos = [encoded(picture(300 + n, 400)) for n in range(8)]

    def ask(photo: bytes) -> httpx.Response:
        return httpx.post(f"{guarded}/v1/search", files={"image": photo}, headers=bearer(KEY), timeout=60)

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, photos))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(a.json()["code"] == "overloaded" and a.headers["retry-after"] == "1" for a in refused)
    assert ask(photos[0]).status_code == 200
    samples = scrape(guarded)
    assert value(samples, "refused_total", reason="overloaded") == len(refused)
    assert value(samples, "ongoing") == value(samples, "waiting") == 0


# ---- metrics ----


def test_what_is_counted(guarded: str, tiny: TinyRelease) -> None:
    before = scrape(guarded)
    httpx.post(f"{guarded}/v1/search", files={"image": tiny.photo("p/03")}, headers=bearer(KEY))
    httpx.post(f"{guarded}/v1/search", files={"image": encoded(picture(801))}, headers=bearer(KEY))
    httpx.post(f"{guarded}/v1/search", files={"image": b"no photo"}, headers=bearer(KEY))
    httpx.get(f"{guarded}/v1/secret-of-a-client", headers=bearer(KEY))
    after = scrape(guarded)

    def grew(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert (grew("answers_total", stage="hash"), grew("answers_total", stage="vector")) == (1, 1)
    assert grew("responses_total", route="/v1/search", status="200") == 2
    assert grew("responses_total", route="/v1/search", status="415") == 1
    assert grew("responses_total", route="other", status="404") == 1
    assert grew("stage_seconds_count", stage="hash") == 2 and grew("stage_seconds_count", stage="analyse") == 1
    assert grew("response_seconds_count", route="/v1/search") == 3
    assert 0 < value(after, "hash_hit_frac") < 1 and value(after, "no_match_frac") == 0
    assert value(after, "release", release=RELEASE_ID) == 1
    assert "secret" not in str(after) and "page" not in {v for (_, labels) in after for _, v in labels}


def test_replicas_are_summed() -> None:
    first, second = Metrics(), Metrics()
    for metrics, hits in ((first, 3), (second, 1)):
        metrics.serves("r1")
        for stage in ["hash"] * hits + ["vector"]:
            metrics.answers.labels(stage).inc()
        metrics.stage_seconds.labels("total").observe(0.02)
        metrics.probed(9, 10)
    text = exposition([first.snapshot(), second.snapshot()]).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count(f"# TYPE {PREFIX}_answers_total counter") == 1
    sums = {(s.name, s.labels.get("stage") or s.labels.get("release")): s.value for f in families.values() for s in f.samples}
    assert sums[f"{PREFIX}_answers_total", "hash"] == 4 and sums[f"{PREFIX}_answers_total", "vector"] == 2
    assert sums[f"{PREFIX}_stage_seconds_count", "total"] == 2 and sums[f"{PREFIX}_release", "r1"] == 2
    assert sums[f"{PREFIX}_hash_hit_frac", None] == pytest.approx(4 / 6)
    assert sums[f"{PREFIX}_recall_at_10", None] == pytest.approx(0.9)


def test_the_dashboard_asks_for_what_there_is() -> None:
    metrics = Metrics()
    offered = {m.name + suffix for m in metrics.snapshot() for suffix in ("", "_total", "_bucket", "_count", "_sum")}
    board = json.loads((ROOT / "conf" / "grafana" / "visual-search.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(asked) >= 10 and len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for expression in asked:
        assert set(re.findall(rf"{PREFIX}_\w+", expression)) <= offered, expression


# ---- logs ----


def test_a_log_line_says_what_and_not_who(guarded: str, tiny: TinyRelease, lines: list[dict[str, Any]]) -> None:
    headers = {**bearer(KEY), "x-request-id": "id-of-a-request"}
    answer = httpx.post(f"{guarded}/v1/search", files={"image": ("name.jpg", tiny.photo("p/03"))}, headers=headers)
    assert answer.headers["x-request-id"] == "id-of-a-request"
    wait_until(lambda: any(line.get("request_id") == "id-of-a-request" for line in lines))  # it is written after the answer
    line = next(line for line in lines if line.get("request_id") == "id-of-a-request")
    assert (line["event"], line["method"], line["route"], line["status"]) == ("answered", "POST", "/v1/search", "200")
    assert (line["release"], line["stage"], line["client"]) == (RELEASE_ID, "hash", "page")
    bad = httpx.get(f"{guarded}/v1/products/nobody/similar?k=3", headers={**bearer(KEY), "x-request-id": "<script>"})
    assert re.fullmatch(r"[0-9a-f]{24}", bad.headers["x-request-id"])
    text = str(list(lines))
    assert "nobody" not in text and "script" not in text and "name.jpg" not in text and KEY not in text


def test_a_fault_is_logged_without_its_text() -> None:
    try:
        raise ValueError("secret of a client")
    except ValueError:
        record = logging.getLogger("serve.x").makeRecord(
            "serve.x", 40, "", 0, "event=bug route=%s", ("/v1/search",), sys.exc_info()
        )
    token = about_request.set({"request_id": "r"})
    line = json.loads(JsonLines().format(record))
    about_request.reset(token)
    assert (line["event"], line["error"], line["request_id"]) == ("bug", "ValueError", "r")
    assert line["places"][-1].startswith(__file__) and "secret" not in str(line)


# ---- recall probe ----


def test_vector_answers_are_run_again_exactly(guarded: str) -> None:
    before = value(scrape(guarded), "probe_queries_total")
    httpx.post(f"{guarded}/v1/search", files={"image": encoded(picture(802))}, data={"k": "12"}, headers=bearer(KEY))
    wait_until(lambda: value(scrape(guarded), "probe_queries_total") == before + 1)
    samples = scrape(guarded)
    expected = value(samples, "probe_expected_total")
    assert expected == 10 * (before + 1) and 0 < value(samples, "recall_at_10") == value(samples, "probe_found_total") / expected


def candidates(*products: str, shard_row: int = 0) -> list[Candidate]:
    return [Candidate(p, 1.0 - n / 100, "i", 0, (0, 0, 1, 1), None, "u", "s", shard_row) for n, p in enumerate(products)]


def test_a_lost_product_is_seen() -> None:
    exact = candidates(*"abcdefghij")
    assert recall(candidates(*"abcdefghij"), exact) == (10, 10)
    assert recall(candidates(*"abcdefghxy"), exact) == (8, 10)
    inserted = candidates("new", shard_row=-1)
    assert recall([*inserted, *candidates(*"abcdefghi")], exact) == (9, 9), "an insert pushed the tenth out"
    assert recall(candidates(*"abcdef"), exact) == (6, 10), "a partition that was not searched"


def test_a_probe_that_fails_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def dead(*_: Any) -> Any:
        raise RuntimeError("secret")

    async def probe() -> RecallProbe:
        probe = RecallProbe([dead], 1.0, Metrics())
        probe.consider(np.ones(4, np.float32), 10, None, candidates(*"abcdefghij"))
        first = probe.running
        probe.consider(np.ones(4, np.float32), 10, None, candidates(*"abcdefghij"))
        assert first is not None and probe.running is first, "one at a time"
        await first
        return probe

    assert asyncio.run(probe()).running is None


def test_exact_search_of_a_group_is_the_same_for_flat_shards(served: ServedRelease, tiny: TinyRelease) -> None:
    release_id = served.manifest.release_id
    searcher = ShardSearcher(tiny.settings, release_id, 0)
    query = np.random.default_rng(5).normal(size=(2, 16)).astype(np.float32)
    exact = asyncio.run(searcher.search_exactly(release_id, query, 5, None))
    assert exact == asyncio.run(searcher.search(release_id, query, 5, [None, None], None))


# ---- time limits ----


def test_clients_do_not_set_the_time_limits_of_the_server() -> None:
    """What Serve's own readers find, without and with the middleware; over HTTP: test_api_main."""
    headers = [(b"X-Request-Timeout-Seconds", b"0"), (b"x-request-disconnect-disabled", b"?1"), (b"x-request-id", b"r")]
    headers.append((b"serve-multiplexed-model-id", b"m"))
    seen: list[dict[bytes, bytes]] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append({name.lower(): value for name, value in scope["headers"]})

    async def both() -> None:
        await inner({"headers": headers}, None, None)
        await middlewares()[0].cls(inner)({"type": "http", "headers": headers}, None, None)  # type: ignore[arg-type]

    asyncio.run(both())
    read = [(parse_request_timeout_header(h, 10.0), parse_disconnect_disabled_header(h)) for h in seen]
    assert read == [(None, True), (10.0, False)]
    assert seen[1] == {b"x-request-id": b"r"}
    validate_http_proxy_callback_return(call_function_from_import_path(CALLBACK))


def test_a_query_that_takes_too_long_is_cut(served: ServedRelease, tiny: TinyRelease, groups: Any) -> None:
    async def hangs(*_: Any) -> Any:
        await asyncio.sleep(60)

    serve = tiny.settings.serve.model_copy(update={"request_timeout_s": 1.0})
    cascade = Cascade(served, tiny.settings.model_copy(update={"serve": serve}), AskEncoder(hangs, hangs, hangs), groups)
    try:
        with pytest.raises(Problem) as problem:
            asyncio.run(cascade.search(Query(5, encoded(picture(803)))))
    finally:
        cascade.close()
    assert problem.value.body.status == 503
