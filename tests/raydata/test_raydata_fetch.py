"""Every way a fetch can go, on real files and a real HTTP server."""

import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from jobs.raydata.fetch import Fetcher, FetchError, FetchRules, Validator, is_allowed, local_path

SCHEMES = ("file", "http")
MAX_BYTES = 2_000
VALIDATORS = {  # what is sent, and what a client asks with next time
    "/tagged": ("ETag", 'W/"7"', "If-None-Match"),
    "/dated": ("Last-Modified", formatdate(0, usegmt=True), "If-Modified-Since"),
}


class Photos(BaseHTTPRequestHandler):
    """/ok, /redirect, /away, /abroad, /loop, /empty, /large, /endless, /slow, /stall, /tagged, /dated; 404 for the rest."""

    asked: ClassVar[list[tuple[str, str]]] = []  # host and path

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"].partition(":")[0], self.path))
        abroad = f"http://localhost:{self.server.server_address[1]}/ok"
        places = {"/redirect": "/ok", "/loop": "/loop", "/away": "ftp://127.0.0.1/ok", "/abroad": abroad}
        bodies = {"/ok": b"photo", "/empty": b"", "/large": b"x" * (MAX_BYTES + 1), "/slow": b"late", "/stall": b"half"}
        if self.path == "/slow":
            time.sleep(1.5)
        if self.path in ("/tagged", "/dated"):
            name, value, condition = VALIDATORS[self.path]
            same = self.headers.get(condition) == value
            self.send_response(304 if same else 200)
            self.send_header(name, value)
            if not same:
                self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"" if same else b"photo")
        elif self.path in places:
            self.send_response(302)
            self.send_header("Location", places[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/endless":  # no length is given: counted while it comes
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * (MAX_BYTES + 1))
        elif self.path in bodies:
            self.send_response(200)
            self.send_header("Content-Length", str(len(bodies[self.path]) + (4 if self.path == "/stall" else 0)))
            self.end_headers()
            self.wfile.write(bodies[self.path])
            if self.path == "/stall":
                time.sleep(1.5)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Photos)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetcher() -> Fetcher:
    return Fetcher(FetchRules(SCHEMES, MAX_BYTES, timeout_s=0.5))


def reason(fetcher: Fetcher, uri: str) -> str:
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(uri)
    assert caught.value.detail
    return caught.value.reason


def test_paths_and_file_uris(fetcher: Fetcher, tmp_path: Path) -> None:
    photo = tmp_path / "blue shoe 50%.jpg"
    photo.write_bytes(b"photo")
    assert fetcher.fetch(str(photo)).data == fetcher.fetch(photo.as_uri()).data == b"photo"
    assert local_path(photo.as_uri()) == photo


@pytest.mark.parametrize("path", ["/ok", "/redirect"])
def test_http(fetcher: Fetcher, site: str, path: str) -> None:
    assert fetcher.fetch(site + path).data == b"photo"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/nothing", "fetch_failed"),
        ("/loop", "fetch_failed"),
        ("/away", "fetch_failed"),
        ("/empty", "empty"),
        ("/large", "too_large"),
        ("/endless", "too_large"),
        ("/slow", "timeout"),
        ("/stall", "timeout"),
    ],
)
def test_http_failures(fetcher: Fetcher, site: str, path: str, expected: str) -> None:
    assert reason(fetcher, site + path) == expected


def test_disk_failures(fetcher: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "large.jpg").write_bytes(b"x" * (MAX_BYTES + 1))
    assert reason(fetcher, str(tmp_path / "missing.jpg")) == "fetch_failed"
    assert reason(fetcher, str(tmp_path)) == "fetch_failed"
    assert reason(fetcher, f"{tmp_path}/nul\0.jpg") == "fetch_failed"
    assert reason(fetcher, f"{tmp_path}/{'long' * 200}.jpg") == "fetch_failed"
    assert reason(fetcher, str(tmp_path / "empty.jpg")) == "empty"
    assert reason(fetcher, str(tmp_path / "large.jpg")) == "too_large"


@pytest.mark.parametrize("uri", ["ftp://host/a.jpg", "https://host/a.jpg", "data://x", "s3://bucket/a.jpg"])
def test_schemes_that_are_not_allowed(fetcher: Fetcher, uri: str) -> None:
    assert reason(fetcher, uri) == "bad_scheme"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/a.jpg", "http://[bad/a.jpg", "http://", "http://exa mple/a.jpg"])
def test_addresses_nobody_answers(fetcher: Fetcher, uri: str) -> None:
    assert reason(fetcher, uri) == "fetch_failed"


@pytest.mark.parametrize("path", ["/tagged", "/dated"])
def test_a_page_that_did_not_change_is_not_sent_again(fetcher: Fetcher, site: str, path: str) -> None:
    first = fetcher.fetch(site + path)
    assert first.data == b"photo" and VALIDATORS[path][1] in (first.validator.etag, first.validator.last_modified)
    again = fetcher.fetch(site + path, first.validator)
    assert again.data is None and again.validator == first.validator
    assert fetcher.fetch(site + path, Validator('"6"', "Fri, 02 Jan 1970 00:00:00 GMT")).data == b"photo"


def test_a_file_that_did_not_change_is_not_read_again(fetcher: Fetcher, tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"photo")
    known = fetcher.fetch(str(photo)).validator
    assert fetcher.fetch(str(photo), known).data is None
    photo.write_bytes(b"other photo")
    assert fetcher.fetch(str(photo), known).data == b"other photo"


def test_hosts_and_buckets_that_are_not_allowed(site: str) -> None:
    rules = FetchRules(("http", "s3"), MAX_BYTES, 0.5, hosts=("127.0.0.1", "*.shop.example"), buckets=("photos",))
    fetcher = Fetcher(rules)
    assert fetcher.fetch(f"{site}/redirect").data == b"photo"
    Photos.asked.clear()
    for uri in ("http://localhost/a", "http://shop.example/a", "http://127.0.0.1@localhost/a", "http://evilshop.example/a"):
        assert reason(fetcher, uri) == "bad_host"
    assert reason(fetcher, f"{site}/abroad") == "bad_host"
    assert Photos.asked == [("127.0.0.1", "/abroad")], "the other host was asked before it was checked"
    assert reason(fetcher, "s3://others/a.jpg") == "bad_host"
    assert fetcher.fetch(f"{site}/ok").data == b"photo"
    assert is_allowed("cdn.shop.example", rules.hosts) and is_allowed("a.b.shop.example", rules.hosts)
