"""The release that answers, and how another takes its place while queries go on.

Every replica of the ingress follows the registry by itself. A new champion is opened aside: its digests, its bundle and its hash
version are checked, it answers queries with known answers, and only then it takes over, in one step. A query is answered from
the release it began with. A bad one is refused and named; the old one goes on. No more than two are open at any time.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import numpy as np
from mlflow.exceptions import MlflowException

from serve.api.cascade import Cascade
from serve.api.problems import Problem
from serve.api.served import ServedRelease
from serve.index.manifest import ReleaseError
from serve.registry import CHAMPION, RegistryAwayError, registered
from serve.settings import Settings
from serve.vision.bundle import BundleError

log = logging.getLogger(__name__)

OpenCascade = Callable[[ServedRelease], Cascade]
GOLDEN = 8  # queries with known answers
GOLDEN_SCORE = 0.98  # of a stored vector with itself, or with the same picture's of another product
OPEN_TIMEOUT_S = 120.0  # every process opens its part first
TRY_AGAIN_S = 60.0  # a refused release may have been repaired


class Host:
    """Holds the cascade that answers. `open_cascade`: none = this release for good."""

    def __init__(self, cascade: Cascade, open_cascade: OpenCascade | None = None, settings: Settings | None = None) -> None:
        assert (open_cascade is None) == (settings is None), "to follow the registry takes both"
        self.current, self.open_cascade, self.settings = cascade, open_cascade, settings
        self.users: dict[Cascade, int] = {}
        self.refused: tuple[str, str] | None = None  # release id, why
        self.refused_at = -TRY_AGAIN_S
        self.listeners: list[Callable[[str], None]] = []

    def tell(self, listener: Callable[[str], None]) -> None:
        """`listener` is given the id of the release that answers, now and after every switch."""
        self.listeners.append(listener)
        listener(self.current.manifest.release_id)

    @contextlib.contextmanager
    def use(self) -> Iterator[Cascade]:
        """The release for one query: it stays open until the query is answered."""
        cascade = self.current
        self.users[cascade] = self.users.get(cascade, 0) + 1
        try:
            yield cascade
        finally:
            self.users[cascade] -= 1

    async def follow(self, photo: bytes) -> None:
        """Looks for another champion, for ever. `photo`: of the warm-up query."""
        if self.settings is None:
            return
        while True:
            await asyncio.sleep(self.settings.serve.watch_s)
            try:
                await self.look(photo)
            except (RegistryAwayError, MlflowException, OSError) as error:  # what is open goes on
                log.warning("event=registry_away error=%s", type(error).__name__)

    async def look(self, photo: bytes) -> None:
        """Lets the champion take over, when it is another and good."""
        assert self.settings is not None
        try:
            found = await asyncio.to_thread(registered, self.settings.registry, self.settings.store, CHAMPION)
        except RegistryAwayError:
            raise
        except ReleaseError as error:
            return self.refuse("?", str(error))
        if found is None or found.release_id == self.current.manifest.release_id:
            self.refused = None
            return None
        if self.refused and self.refused[0] == found.release_id and time.monotonic() < self.refused_at + TRY_AGAIN_S:
            return None
        try:
            cascade = await self.opened(photo)
        except RegistryAwayError:
            raise
        except (ReleaseError, BundleError, Problem, OSError, TimeoutError) as error:
            return self.refuse(found.release_id, str(error) or type(error).__name__)
        old, self.current, self.refused = self.current, cascade, None
        for listener in self.listeners:
            listener(cascade.manifest.release_id)
        log.info("event=switched release=%s from=%s", cascade.manifest.release_id, old.manifest.release_id)
        await asyncio.to_thread(cascade.changes.refresh)
        await self.drain(old)
        return None

    async def opened(self, photo: bytes) -> Cascade:
        """The champion, verified and proved. Raises ReleaseError and others that say what is wrong with it."""
        assert self.settings is not None and self.open_cascade is not None
        served = await asyncio.to_thread(ServedRelease.resolve, self.settings)
        cascade = await asyncio.to_thread(self.open_cascade, served)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await prove(cascade, photo)
        except BaseException:
            await asyncio.to_thread(cascade.close)
            raise
        return cascade

    async def drain(self, old: Cascade) -> None:
        """Closes `old` when its last query is answered."""
        while self.users.get(old, 0):
            await asyncio.sleep(0.05)
        self.users.pop(old, None)
        await asyncio.to_thread(old.close)

    def refuse(self, release_id: str, reason: str) -> None:
        """Says so, once a minute; the old release goes on."""
        self.refused, self.refused_at = (release_id, reason), time.monotonic()
        log.error("event=refused release=%s reason=%s", release_id, reason)


async def prove(cascade: Cascade, photo: bytes) -> None:
    """A query through every part, then stored vectors that must find their own products. Raises ReleaseError."""
    while True:
        try:
            await cascade.warm_up(photo)
            break
        except (Problem, ReleaseError) as error:  # parts are still being opened, until the caller's time is up
            log.info("event=opening release=%s reason=%s", cascade.manifest.release_id, error)
            await asyncio.sleep(0.5)
    store, changed = cascade.products.release, cascade.changes.fresh.rows
    first = [opened.shard.records.product_id(0) for shards in store.by_bucket for opened in shards if opened.shard.num_rows]
    for product_id in [product_id for product_id in first if product_id not in changed][:GOLDEN]:
        embedding_D = await cascade.in_thread(store.embedding, product_id)
        assert embedding_D is not None, "the store named it"
        found = await cascade.searchers.search(embedding_D[np.newaxis], 10, [None], None)
        best = found.candidates[0]
        if not best or (best[0].score < GOLDEN_SCORE and product_id not in {c.product_id for c in best}):
            raise ReleaseError(f"release {cascade.manifest.release_id}: product {product_id} is not found by its own vector")
