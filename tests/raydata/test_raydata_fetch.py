"""Every way a fetch can go, on real files and a real HTTP server."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.raydata.fetch import Fetcher, FetchError, local_path

SCHEMES = ("file", "http")
MAX_BYTES = 2_000


class Photos(BaseHTTPRequestHandler):
    """/ok, /redirect, /away, /loop, /empty, /large, /endless, /slow, /stall; 404 for the rest."""

    def do_GET(self) -> None:
        places = {"/redirect": "/ok", "/loop": "/loop", "/away": "ftp://127.0.0.1/ok"}
        bodies = {"/ok": b"photo", "/empty": b"", "/large": b"x" * (MAX_BYTES + 1), "/slow": b"late", "/stall": b"half"}
        if self.path == "/slow":
            time.sleep(1.5)
        if self.path in places:
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
    return Fetcher(SCHEMES, MAX_BYTES, timeout_s=0.5)


def reason(fetcher: Fetcher, uri: str) -> str:
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(uri)
    assert caught.value.detail
    return caught.value.reason


def test_paths_and_file_uris(fetcher: Fetcher, tmp_path: Path) -> None:
    photo = tmp_path / "blue shoe 50%.jpg"
    photo.write_bytes(b"photo")
    assert fetcher.fetch(str(photo)) == fetcher.fetch(photo.as_uri()) == b"photo"
    assert local_path(photo.as_uri()) == photo


@pytest.mark.parametrize("path", ["/ok", "/redirect"])
def test_http(fetcher: Fetcher, site: str, path: str) -> None:
    assert fetcher.fetch(site + path) == b"photo"


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
