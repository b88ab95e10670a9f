"""Manners towards real HTTP servers that count who asks, and that are slow, busy, moody or dead."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.raydata.fetch import FetchError, FetchRules
from jobs.raydata.polite import PoliteFetcher

RULES = {"schemes": ("http",), "max_bytes": 1_000, "timeout_s": 5.0, "threads": 4, "per_host": 2}
SLOW, FAST, BUSY, DEAD = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"  # one server answers for all of 127.0.0.0/8


class Site(ThreadingHTTPServer):
    """What it saw: requests at once and their times by host, how often each path was asked for, the agent's name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Answers)
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.at_once: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.paths: Counter[str] = Counter()
        self.agents: set[str] = set()

    def uris(self, host: str, name: str, number: int) -> list[str]:
        return [f"http://{host}:{self.server_port}/{name}/{i}" for i in range(number)]


class Answers(BaseHTTPRequestHandler):
    """/ok; /held once released; /moody/I fails I times (a 503, then a cut line); /busy asks for a second, /closed for an hour."""

    server: Site

    def do_GET(self) -> None:
        host = self.headers["Host"].partition(":")[0]
        with self.server.lock:
            self.server.agents.add(self.headers["User-Agent"])
            self.server.times[host].append(time.monotonic())
            self.server.paths[self.path] += 1
            asked = self.server.paths[self.path]
            self.server.at_once[host] += 1
            self.server.most_at_once[host] = max(self.server.most_at_once[host], self.server.at_once[host])
        _, name, number = self.path.split("/")
        if name == "held":
            self.server.released.wait(20)
        with self.server.lock:
            self.server.at_once[host] -= 1
        if host == DEAD or (name == "moody" and asked <= int(number) and asked % 2 == 0):
            self.close_connection = True
            return
        pauses = {"busy": 1, "closed": 3600} if asked == 1 else {"closed": 3600}
        status = 429 if name in pauses else 503 if name == "moody" and asked <= int(number) else 200
        self.send_response(status if name != "gone" else 404)
        if status == 429:
            self.send_header("Retry-After", str(pauses[name]))
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"photo")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def fetcher(**rules: object) -> PoliteFetcher:
    return PoliteFetcher(FetchRules(**RULES | rules))  # type: ignore[arg-type]


def reason(fetching: PoliteFetcher, uri: str) -> str:
    with pytest.raises(FetchError) as caught:
        fetching.fetch(uri)
    return caught.value.reason


def test_a_slow_host_has_few_connections_and_keeps_nobody_else_waiting(site: Site) -> None:
    with fetcher(user_agent="a-shop/1 (mail@shop.example)") as fetching:
        slow = [fetching.submit(uri) for uri in site.uris(SLOW, "held", 12)]
        fast = [fetching.submit(uri) for uri in site.uris(FAST, "ok", 12)]
        assert not wait(fast, timeout=20).not_done and not any(future.done() for future in slow)
        site.released.set()
        assert {future.result().data for future in slow + fast} == {b"photo"}
    assert site.most_at_once[SLOW] == 2 and site.agents == {"a-shop/1 (mail@shop.example)"}


def test_requests_to_one_host_keep_their_distance(site: Site) -> None:
    with fetcher(interval_s=0.2, per_host=4) as fetching:
        for future in [fetching.submit(uri) for uri in site.uris(FAST, "ok", 4)]:
            future.result()
    times = sorted(site.times[FAST])
    assert len(times) == 4 and times[-1] - times[0] > 0.4  # three times 0.2, less what the first was late


def test_what_may_pass_is_asked_for_again(site: Site) -> None:
    never, once, twice = site.uris(FAST, "moody", 3)
    with fetcher(attempts=3) as fetching:
        assert fetching.fetch(never) == fetching.fetch(once) == fetching.fetch(twice) == b"photo"
        assert reason(fetching, site.uris(FAST, "gone", 1)[0]) == "fetch_failed"
    with fetcher(attempts=2) as fetching:
        assert reason(fetching, site.uris(FAST, "moody", 4)[3]) == "fetch_failed"
    assert site.paths == {"/moody/0": 1, "/moody/1": 2, "/moody/2": 3, "/moody/3": 2, "/gone/0": 1}


def test_a_host_says_when_to_come_back(site: Site) -> None:
    with fetcher(attempts=3, total_s=4.0) as fetching:
        busy = fetching.submit(site.uris(BUSY, "busy", 1)[0])
        assert busy.result().data == b"photo"
        assert reason(fetching, site.uris(FAST, "closed", 1)[0]) == "fetch_failed"  # an hour is more than a photo may take
    first, second = site.times[BUSY]
    assert second - first >= 1.0 and len(site.times[FAST]) == 1


def test_a_dead_host_is_given_up(site: Site) -> None:
    with fetcher(attempts=2, host_failures=3) as fetching:
        dead = [fetching.submit(uri) for uri in site.uris(DEAD, "ok", 40)]
        fast = [fetching.submit(uri) for uri in site.uris(FAST, "ok", 4)]
        errors = [future.exception() for future in dead]
        assert {future.result().data for future in fast} == {b"photo"}
    assert all(isinstance(error, FetchError) for error in errors)
    reasons = Counter(error.reason for error in errors if isinstance(error, FetchError))
    assert set(reasons) == {"fetch_failed", "host_down"} and reasons["fetch_failed"] <= 4
    assert len(site.times[DEAD]) <= 8  # two requests for each of three photos, and for one more that was on its way
    assert f"{DEAD} did not give 3 photos in a row, the last for fetch_failed: ConnectionError" in str(errors[-1])
