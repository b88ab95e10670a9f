"""Who may ask, how often, and how many at once: API keys, rate limits, and room for so many queries, before any work.

python -m serve.api.access shop-page      # makes a key for the client `shop-page`: what it sends, and what conf/ keeps
"""

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import math
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.logs import about_request
from serve.api.metrics import Metrics
from serve.api.problems import Problem, overloaded
from serve.settings import ApiKey

# Asked without a key: the page and what it shows, and whether this process lives.
OPEN_PATHS = ("/", "/judge", "/docs", "/openapi.json", "/healthz", "/readyz")
OPEN_FOLDERS = ("/page/", "/v1/images/")


def key_digest(key: str) -> str:
    """What conf/ keeps of a key: hex SHA-256. A key is 256 random bits, so nothing slower is needed against guessing."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """The known keys."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self.keys = tuple(keys)

    def owner(self, headers: Headers) -> ApiKey:
        """Whose key the request brought, as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Raises Problem 401.

        Every known digest is compared, each in constant time: how long it takes says nothing about any of them.
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = key_digest(given)
        found = [key for key in self.keys if hmac.compare_digest(key.sha256, digest)]
        if not found:
            raise Problem(
                401, "no_key", "needs a key of this server: Authorization: Bearer KEY", "authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return found[0]


class Bucket:
    """A token bucket: `rate_per_s` requests a second; after a pause up to `burst` at once (a second's worth, at least one)."""

    def __init__(self, rate_per_s: float, clock: Callable[[], float] = time.monotonic, *, burst: float | None = None) -> None:
        self.rate_per_s, self.clock = rate_per_s, clock
        self.size = self.tokens = max(1.0, rate_per_s if burst is None else burst)
        self.at = clock()

    def wait_s(self) -> float:
        """0 when the request may go on now (and is counted), else the seconds until one may."""
        now = self.clock()
        self.tokens = min(self.size, self.tokens + (now - self.at) * self.rate_per_s)
        self.at = now
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        return (1.0 - self.tokens) / self.rate_per_s


class Room:
    """So many queries are answered at once; so many more may be on their way in or wait; who comes then is told to come back.

    A body that arrives slowly takes no place of those that are answered.
    """

    def __init__(self, max_ongoing: int, max_queued: int, metrics: Metrics) -> None:
        self.max_inside, self.inside, self.ongoing, self.metrics = max_ongoing + max_queued, 0, 0, metrics
        self.places = asyncio.Semaphore(max_ongoing)

    @contextlib.contextmanager
    def inside_for(self) -> Iterator[None]:
        """A request is here, from its first byte to its answer. Raises Problem 429."""
        if self.inside >= self.max_inside:
            raise overloaded("too many queries are waiting; try again")
        self.inside += 1
        self._show()
        try:
            yield
        finally:
            self.inside -= 1
            self._show()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Waits until one more query may be answered."""
        async with self.places:
            self.ongoing += 1
            self._show()
            try:
                yield
            finally:
                self.ongoing -= 1
                self._show()

    def _show(self) -> None:
        self.metrics.ongoing.set(self.ongoing)
        self.metrics.waiting.set(self.inside - self.ongoing)


class Access:
    """ASGI middleware: key, rate, room. An empty list of keys lets everyone in."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey], num_ingress: int, room: Room, metrics: Metrics) -> None:
        self.app, self.keys, self.room, self.metrics = app, Keys(keys), room, metrics
        # Every ingress replica counts for itself, and requests are spread evenly over them.
        self.buckets = {key.name: Bucket(key.rate_per_s / num_ingress) for key in keys if key.rate_per_s is not None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            return await self.app(scope, receive, send)
        try:
            if self.keys.keys:
                self._admit(Headers(scope=scope))
            with self.room.inside_for() if is_query(scope["path"]) else contextlib.nullcontext():
                await self.app(scope, receive, send)
        except Problem as problem:
            self.metrics.refused.labels(problem.body.code).inc()
            await problem.response()(scope, receive, send)

    def _admit(self, headers: Headers) -> None:
        """Raises Problem: 401, 429."""
        owner = self.keys.owner(headers)
        about_request.get()["client"] = owner.name
        wait_s = self.buckets[owner.name].wait_s() if owner.name in self.buckets else 0.0
        if wait_s:
            limit = f"more than {owner.rate_per_s:g} requests a second with this key"
            raise Problem(429, "rate_limited", limit, headers={"Retry-After": str(math.ceil(wait_s))})


def is_open(path: str) -> bool:
    """`path` is answered without a key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def is_query(path: str) -> bool:
    """`path` costs work, so that it takes a place."""
    return path.startswith("/v1/") and path != "/v1/release"


def main() -> None:
    """Make one key and show it, once."""
    parser = argparse.ArgumentParser(prog="python -m serve.api.access", description="Makes an API key; only its hash is kept.")
    parser.add_argument("name", help="whose key it is; stands in the logs")
    name = parser.parse_args().name
    key = f"vs_{secrets.token_urlsafe(32)}"
    entry = ApiKey(name=name, sha256=key_digest(key))
    sys.stdout.write(
        f"the client sends, and nothing else knows it:\n  Authorization: Bearer {key}\n"
        f"under serve.api_keys of the settings (rate_per_s: null = no limit):\n"
        f"  - {{name: {entry.name}, sha256: {entry.sha256}, rate_per_s: 10}}\n"
    )


if __name__ == "__main__":
    main()
