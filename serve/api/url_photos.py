"""Photos fetched from addresses that clients name: only from public hosts, whatever name, redirect or trick they come by.

Off by default. A name is looked up once, every address it has must be public, and the connection goes to exactly those
addresses; each redirect is checked like the first address. No proxy, cookie or password is ever used.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from serve.api.problems import Problem

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
AT_ONCE = 8
PORTS = (80, 443)
# Not public, or ways to write an IPv4 address that is not: benchmarking, protocol assignments, shared space, NAT64, 6to4, Teredo,
# IPv4-translated. `is_global` of Python's ipaddress leaves some of them in, depending on its version.
DENIED_BLOCKS = "192.0.0.0/24 100.64.0.0/10 198.18.0.0/15 240.0.0.0/4 192.88.99.0/24 " + (
    "64:ff9b::/96 64:ff9b:1::/48 2002::/16 2001::/32 ::ffff:0:0:0/96 ::/96 fec0::/10 100::/64"
)
DENIED = [ipaddress.ip_network(block) for block in DENIED_BLOCKS.split()]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_denied(address: Address) -> bool:
    """Whether nothing may be fetched from `address`."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return is_denied(mapped)
    return not address.is_global or address.is_multicast or any(address in block for block in DENIED)


class Pinned(AbstractResolver):
    """Answers with addresses that were checked before; asks nobody."""

    def __init__(self, addresses: Collection[str]) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """See AbstractResolver."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self.addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


class UrlPhotos:
    """Fetches photos. `denied` and `ports`: what is refused, and what may be connected to."""

    def __init__(
        self,
        max_bytes: int,
        timeout_s: float,
        denied: Callable[[Address], bool] = is_denied,
        ports: Collection[int] = PORTS,
    ) -> None:
        self.max_bytes, self.timeout_s, self.denied, self.ports = max_bytes, timeout_s, denied, ports
        self.room = asyncio.Semaphore(AT_ONCE)

    async def fetch(self, address: str) -> bytes:
        """The bytes at `address`. Raises Problem 422 for what may not be, or can't be, fetched; 413 for too many bytes."""
        try:
            async with self.room, asyncio.timeout(self.timeout_s):
                url = address
                for _ in range(MAX_REDIRECTS + 1):
                    found = await self._get(url)
                    if isinstance(found, bytes):
                        return found
                    url = found
                raise refused(f"redirects more than {MAX_REDIRECTS} times")
        except TimeoutError:
            raise unreachable() from None

    async def _get(self, address: str) -> bytes | str:
        """The body, or where a redirect leads."""
        url = self._checked(address)
        pinned = Pinned(await self._addresses(url))
        connector = aiohttp.TCPConnector(resolver=pinned, use_dns_cache=False)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
                ) as session,
                session.get(url, allow_redirects=False, headers={"Accept": "image/*", "Accept-Encoding": "identity"}) as answer,
            ):
                if answer.status in REDIRECTS and "location" in answer.headers:
                    return str(url.join(URL(answer.headers["location"])))
                if answer.status != 200 or answer.headers.get("content-encoding", "identity") != "identity":
                    raise unreachable()
                return await self._body(answer)
        except (aiohttp.ClientError, OSError, ValueError):
            raise unreachable() from None

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        """At most max_bytes, counted as they come."""
        body = bytearray()
        if (answer.content_length or 0) <= self.max_bytes:
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > self.max_bytes:
                    break
            else:
                return bytes(body)
        raise Problem(413, "image_too_large", f"more than {self.max_bytes} bytes", "image_url")

    def _checked(self, address: str) -> URL:
        """A plain http(s) address. Raises Problem 422."""
        try:
            url = URL(address)
            port = url.port
        except ValueError:
            raise refused("is no address") from None
        if url.scheme not in ("http", "https") or not url.host or "%" in url.host:
            raise refused("must be http:// or https:// with the name of a host")
        if url.user is not None or url.password is not None:
            raise refused("must have no user or password")
        if port not in self.ports:
            raise refused("must use the port of its scheme")
        return url

    async def _addresses(self, url: URL) -> list[str]:
        """Every address of the host, all of them public. Raises Problem 422."""
        assert url.host is not None
        try:
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
            if any("%" in address or self.denied(ipaddress.ip_address(address)) for address in addresses):
                raise refused("is no public host")
        except (OSError, UnicodeError):
            raise unreachable() from None
        return addresses


def refused(detail: str) -> Problem:
    """What is never fetched."""
    return Problem(422, "image_url_refused", detail, "image_url")


def unreachable() -> Problem:
    """One answer for every way to fail, so that nobody learns what listens where."""
    return Problem(422, "image_url_unreachable", "no photo could be fetched from there", "image_url")
