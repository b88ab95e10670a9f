"""Products put, changed and deleted over HTTP: durable first, then searchable here at once and in every other replica soon.

Every replica of the ingress and of the searchers reads the table `inserts` on. An ingress keeps a small shard of what is new and
hides what is old from its own hash tables; a searcher hides what is old from its shards.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from deltalake.exceptions import DeltaError

from serve.api.inserts import Inserts
from serve.api.problems import Problem
from serve.api.served import ServedRelease
from serve.index.inserts import CHANGE, DELETE, EMPTY, PUT, Fresh, Row, row_of
from serve.index.release import ProductStore
from serve.settings import StoreConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What a client asks for. `crops`: of a new photo, rows of inserts.CROP; none = the photos stay."""

    product_id: str
    kind: str
    attributes: Mapping[str, Any]
    crops: list[Row] | None = None


class Changes:
    """What came after the release, as this replica knows it."""

    def __init__(
        self,
        served: ServedRelease,
        store: StoreConfig,
        products: ProductStore,
        hide: Callable[[Fresh, Collection[str]], None],
    ) -> None:
        """`hide`: told of every new state, and which products are new in it, to hide what is no longer true of the release."""
        self.bundle, self.products, self.hide = served.manifest.bundle, products, hide
        self.inserts = Inserts(store, served.manifest)
        self.fresh = Fresh({}, ())
        self.last_at = 0
        self.waiting: list[tuple[Change, asyncio.Future[Row]]] = []
        self.writing: asyncio.Task[None] | None = None
        self.lock = threading.Lock()

    def refresh(self) -> None:
        """Takes in what others wrote. Called from a thread."""
        with self.lock:
            self._take(self.inserts.read_new())

    def _take(self, rows: list[Row]) -> None:
        if rows:
            self.last_at = max(self.last_at, *(row["at"] for row in rows))
            self.fresh = self.fresh.with_later(rows, self.bundle.dim, self.bundle.digest)
            self.hide(self.fresh, {row["product_id"] for row in rows} & self.fresh.rows.keys())

    async def add(self, change: Change) -> Row:
        """The row that now says so, once it is durable. Those that come while one is written are written together.

        Raises Problem: 404 for what is not there, 422 for what a product must not be, 503 when nothing could be written.
        """
        future: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self.waiting.append((change, future))
        if self.writing is None or self.writing.done():
            self.writing = asyncio.create_task(self._write_waiting())
        return await asyncio.shield(future)

    async def _write_waiting(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting, []
            outcomes = await asyncio.to_thread(self._write, [change for change, _ in batch])
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Problem):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _write(self, changes: list[Change]) -> list[Row | Problem]:
        """One commit for all that can be done, each upon what those before it left."""
        with self.lock:
            try:
                self._take(self.inserts.read_new())
                states, outcomes = dict(self.fresh.rows), list[Row | Problem]()
                for change in changes:
                    try:
                        row = self._row(change, states)
                        states[change.product_id] = row
                        outcomes.append(row)
                    except Problem as problem:
                        outcomes.append(problem)
                rows = [outcome for outcome in outcomes if isinstance(outcome, dict)]
                if rows:
                    self.inserts.append(rows)
                    self._take(self.inserts.read_new())
                return outcomes
            except (OSError, DeltaError) as error:
                log.error("event=not_stored error=%s", type(error).__name__)
                detail = "the change could not be stored; try again"
                return [Problem(503, "not_stored", detail, headers={"Retry-After": "1"}) for _ in changes]

    def _row(self, change: Change, states: Mapping[str, Row]) -> Row:
        """The whole product after `change`. Raises Problem 404, 422."""
        before = states.get(change.product_id) or row_of(self.products, change.product_id, self.bundle.digest)
        if before is not None and before.get("kind") == DELETE:
            before = None
        if before is None and (change.kind == DELETE or change.crops is None):
            detail = "no such product" if change.kind == DELETE else "no such product; a new one needs a photo"
            raise Problem(404, "unknown_product", detail, "product_id")
        self.last_at = max(self.last_at + 1, time.time_ns() // 1_000)
        head = {"product_id": change.product_id, "at": self.last_at, "bundle_digest": self.bundle.digest}
        if change.kind == DELETE:
            return {**EMPTY, **head, "kind": DELETE, "title": "", "available": False, "crops": None}
        base = before or {**EMPTY, "available": True}
        row = {**base, **change.attributes, **head, "kind": PUT if change.crops is not None else CHANGE}
        row["crops"] = change.crops if change.crops is not None else base["crops"]
        if not row["title"]:
            raise Problem(422, "invalid_field", "a new product needs one", "title")
        if row["price"] is not None and row["currency"] is None:
            raise Problem(422, "invalid_field", "a price needs one", "currency")
        return row
