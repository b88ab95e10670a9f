"""Photos by address: nothing that is not public is ever connected to, by whatever name or redirect it comes."""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serve.api.problems import Problem
from serve.api.url_photos import Address, UrlPhotos, is_denied

PHOTO = b"\xff\xd8\xff" + bytes(range(256)) * 40


class Host(BaseHTTPRequestHandler):
    """A host that sends a photo, redirects, gigabytes, or nothing for a long time."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/photo":
            assert "Cookie" not in self.headers and "Authorization" not in self.headers
            self._send(PHOTO, {"Content-Length": str(len(PHOTO)), "Set-Cookie": "a=b"})
        elif self.path == "/lie":
            self._send(b"", {"Content-Length": str(10**9)})
        elif self.path == "/endless":
            self._send(b"", {})
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(10_000))
        elif self.path == "/gzip":
            self._send(b"x", {"Content-Length": "1", "Content-Encoding": "gzip"})
        elif self.path == "/slow":
            self.server.gone.wait(20)  # type: ignore[attr-defined]
        else:
            self.send_error(404)

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def host() -> Iterator[Any]:
    """The host on a free port of this machine, with what it was asked for in `seen`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    server.seen, server.gone = [], threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.gone.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def fetch(url: str, port: int, *, open_to: str | None = None, timeout_s: float = 2.0) -> bytes:
    """What a fetcher gets that may also use `port`, and connect to the address `open_to`."""

    def denied(address: Address) -> bool:
        return is_denied(address) and str(address) != open_to

    async def run() -> bytes:
        return await UrlPhotos(100_000, timeout_s, denied, (80, 443, port)).fetch(url)

    return asyncio.run(run())


def test_a_photo_comes_as_it_is_also_by_redirects(host: Any) -> None:
    port = host.server_port
    at = f"http://127.0.0.1:{port}"
    for path in ("/photo", "/to//photo", f"/to/{at}/to//photo"):
        assert fetch(at + path, port, open_to="127.0.0.1") == PHOTO


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/lie", "image_too_large"),
        ("/endless", "image_too_large"),
        ("/gzip", "image_url_unreachable"),
        ("/slow", "image_url_unreachable"),
        ("/missing", "image_url_unreachable"),
        ("/to//to//to//to//photo", "image_url_refused"),
        ("/to/file:///etc/passwd", "image_url_refused"),
        ("/to/ftp://127.0.0.1/photo", "image_url_refused"),
        ("/to/http://127.0.0.1:22/", "image_url_refused"),
        ("/to/http://169.254.169.254/latest/meta-data", "image_url_refused"),
        ("/to/http://user:word@127.0.0.1/photo", "image_url_refused"),
    ],
)
def test_what_a_host_can_try(host: Any, path: str, code: str) -> None:
    port = host.server_port
    with pytest.raises(Problem) as problem:
        fetch(f"http://127.0.0.1:{port}{path}", port, open_to="127.0.0.1")
    assert problem.value.body.code == code and problem.value.body.errors[0].field == "image_url"


HOSTS = """
127.0.0.1 127.1 2130706433 0x7f000001 0177.0.0.1 0x7f.1 localhost LOCALHOST localhost. 127.0.0.1. 0.0.0.0 0 127.255.255.255
[::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1] [64:ff9b::7f00:1]
[64:ff9b:1::1] [2002:7f00:1::] [2001:0:7f00:1::] [fe80::1] [fec0::1] [fc00::1] [fd00:ec2::254] [ff02::1] [100::1]
[::ffff:169.254.169.254] [::ffff:10.0.0.1] 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1
169.254.169.254 2852039166 0xa9fea9fe 169.254.170.2 100.64.0.1 100.100.100.200 192.0.0.1 192.0.0.192 192.0.2.1 198.18.0.1
198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 192.88.99.1
"""


@pytest.mark.parametrize("name", HOSTS.split())
def test_no_connection_to_what_is_not_public(host: Any, name: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(Problem) as problem:
            fetch(f"{scheme}://{name}:{host.server_port}/photo", host.server_port)
        assert problem.value.body.status == 422 and problem.value.body.errors[0].field == "image_url"
    assert host.seen == []


NO_ADDRESSES = """
file:///etc/passwd ftp://127.0.0.1/x gopher://127.0.0.1/ data:image/png;base64,AA //127.0.0.1/photo photo http:// http:///photo
http://a:b@example.com/ http://example.com:22/ http://example.com:0/ http://[::1 http://[fe80::1%25lo]/ http://example.com:99999/
javascript:alert(1)
"""


@pytest.mark.parametrize("url", [*NO_ADDRESSES.split(), "http://exa mple.com/", "\x00"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(Problem) as problem:
        fetch(url, 80)
    assert problem.value.body.code in ("image_url_refused", "image_url_unreachable")


def test_a_name_with_one_inner_address_is_refused_and_never_looked_up_again(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebinding: the first answer is public, the second is not. What was checked is what is connected to."""
    answers = [["203.0.113.9"], ["127.0.0.1"]]
    asked: list[str] = []

    async def getaddrinfo(_: Any, name: str, port: int, **__: Any) -> list[Any]:
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers[len(asked) - 1]]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    with pytest.raises(Problem) as problem:
        fetch(f"http://shop.example:{host.server_port}/photo", host.server_port, open_to="203.0.113.9", timeout_s=0.5)
    assert problem.value.body.code == "image_url_unreachable" and asked == ["shop.example"] and host.seen == []
    answers[:] = [["1.1.1.1", "10.0.0.1"]]
    asked.clear()
    with pytest.raises(Problem) as problem:
        fetch("http://shop.example/photo", 80)
    assert problem.value.body.code == "image_url_refused"


def test_public_hosts_are_not_denied() -> None:
    for address in ("1.1.1.1", "93.184.215.14", "2606:4700:4700::1111"):
        assert not is_denied(ipaddress.ip_address(address))
