"""Fetches many files at once and is no burden: few connections a host, pauses, second tries, dead hosts left alone.

An event loop in a thread of its own says who is next; a pool of threads does the fetching. Whatever waits for its host (for room,
for its turn, for a second try) holds no thread of the pool, so a slow host keeps nobody else waiting. What one actor learns of a
host the others learn for themselves. A redirect counts for the host that it started from.
"""

import asyncio
import random
import threading
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from jobs.raydata.fetch import WEB, Fetched, Fetcher, FetchError, FetchRules, Validator, host_of, scheme_of

FIRST_PAUSE_S = 0.5  # before a second request; doubled before each one after it


@dataclass
class Host:
    """What is known of a host. Touched by the loop's thread alone."""

    room: asyncio.Semaphore
    free_at: float = 0.0  # nothing is sent before, in the loop's time
    failed: int = 0  # photos in a row
    down: str = ""  # why nothing is asked of it any more


class PoliteFetcher:
    """Fetches by `rules`; safe to share between threads."""

    def __init__(self, rules: FetchRules) -> None:
        self.rules, self.fetcher = rules, Fetcher(rules)
        self.threads = ThreadPoolExecutor(rules.threads, thread_name_prefix="fetch")
        self.hosts: defaultdict[str, Host] = defaultdict(lambda: Host(asyncio.Semaphore(rules.per_host)))
        started: Future[asyncio.AbstractEventLoop] = Future()
        self.closing = asyncio.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._until_closed(started)), daemon=True)
        self.thread.start()
        self.loop = started.result()

    def submit(self, uri: str, known: Validator | None = None) -> "Future[Fetched]":
        """What Fetcher.fetch gives or raises, once it is this URI's turn and as often as the rules say."""
        return asyncio.run_coroutine_threadsafe(self._fetch(uri, known), self.loop)

    def fetch(self, uri: str) -> bytes:
        """The bytes. Raises FetchError."""
        return self.submit(uri).result().whole

    def close(self) -> None:
        """Drops what is waiting; what is being fetched ends by itself. A second call does nothing."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.closing.set)
            self.thread.join()
            self.threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _until_closed(self, started: "Future[asyncio.AbstractEventLoop]") -> None:
        started.set_result(asyncio.get_running_loop())
        await self.closing.wait()

    def _once(self, uri: str, known: Validator | None) -> "asyncio.Future[Fetched]":
        return asyncio.get_running_loop().run_in_executor(self.threads, self.fetcher.fetch, uri, known)

    async def _fetch(self, uri: str, known: Validator | None) -> Fetched:
        if scheme_of(uri) not in WEB:
            return await self._once(uri, known)
        host = self.hosts[host_of(uri)]
        async with host.room:  # kept between two tries: a host that fails is asked less
            return await self._asked(host, uri, known)

    async def _asked(self, host: Host, uri: str, known: Validator | None) -> Fetched:
        loop, rules = asyncio.get_running_loop(), self.rules
        await self._turn(host)
        give_up_at = loop.time() + rules.total_s
        for attempt in range(1, rules.attempts + 1):
            try:
                found = await self._once(uri, known)
            except FetchError as error:
                if not error.passing:
                    host.failed = 0  # it answers
                    raise
                pause_s = max(error.pause_s, pause_before(attempt))
                if error.pause_s:
                    host.free_at = max(host.free_at, loop.time() + min(error.pause_s, rules.total_s))
                if attempt == rules.attempts or host.down or loop.time() + pause_s + rules.interval_s > give_up_at:
                    self._failed(host, uri, error)
                    raise
                await asyncio.sleep(pause_s)
                await self._turn(host)
            else:
                host.failed = 0
                return found
        raise AssertionError("the last attempt returns or raises")

    async def _turn(self, host: Host) -> None:
        """Waits until the host may be asked. Raises FetchError where it was given up."""
        loop = asyncio.get_running_loop()
        while not host.down and (wait_s := host.free_at - loop.time()) > 0:
            await asyncio.sleep(wait_s)
        if host.down:
            raise FetchError("host_down", host.down)
        host.free_at = loop.time() + self.rules.interval_s

    def _failed(self, host: Host, uri: str, error: FetchError) -> None:
        """Counts a photo that its host did not give; the host is given up for this run where it was one too many."""
        host.failed += 1
        if host.failed >= self.rules.host_failures and not host.down:
            host.down = f"{host_of(uri)} did not give {host.failed} photos in a row, the last for {error.reason}: {error.detail}"


def pause_before(attempt: int) -> float:
    """Seconds after failed attempt number `attempt`, between half and all of what doubles, so that not all come back at once."""
    return random.uniform(0.5, 1.0) * FIRST_PAUSE_S * float(2 ** (attempt - 1))
