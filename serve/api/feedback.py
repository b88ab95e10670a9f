"""What people did with an answer: impressions that this server writes, clicks and purchases that clients send for them.

A query is known by a random id that this server signed: nothing of an upload, no text, no address is written. Who says something
is a digest that changes every day and cannot be turned back without the server's secret; it serves to cap what one client can
teach the ranking (jobs.clicks.sessions).
"""

import hashlib
import hmac
import os
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request

from serve.api.access import Bucket
from serve.api.durable import Records
from serve.api.logs import about_request
from serve.api.problems import Problem
from serve.api.schemas import FeedbackRequest, SearchAnswer
from serve.index.search import Result
from serve.ranking.records import FEEDBACK, FEEDBACK_TABLE, IMPRESSION
from serve.settings import ServeConfig, StoreConfig

VALID_S = 7 * 86_400  # a purchase may come days after the click
SECRET_FILE = "feedback.key"
MAX_CLIENTS = 10_000  # whose rates are remembered
SHUFFLED = 10  # first results that are shown in an order drawn by lot


class Feedback:
    """Signs queries, writes what was shown and what was done. One a release and replica; the secret is the store's."""

    def __init__(self, store: StoreConfig, config: ServeConfig, shuffled_frac: float) -> None:
        self.config, self.shuffled_frac = config, shuffled_frac
        self.secret = secret_of(store.root)
        self.records = Records(f"{store.tables.rstrip('/')}/{FEEDBACK_TABLE}", FEEDBACK)
        self.buckets: OrderedDict[str, Bucket] = OrderedDict()
        self.seen: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def shuffles(self) -> bool:
        """Whether the next answer is one of those that measure how much position alone counts."""
        return self.shuffled_frac > 0 and random.random() < self.shuffled_frac

    def shown(self, answer: SearchAnswer, results: Sequence[Result], shuffled: bool) -> str:
        """The id of this query; its impressions are written on the side."""
        query_id = self.sign(secrets.token_hex(12), int(time.time()))
        features = {result.product_id: list(result.features) for result in results}
        now = datetime.now(UTC)
        self.records.add_soon(
            [
                {"query_id": query_id, "kind": IMPRESSION, "product_id": shown.product_id, "position": position}
                | {"features": features.get(shown.product_id, []), "shuffled": shuffled, "client": "", "at": now}
                for position, shown in enumerate(answer.results)
            ]
        )
        return query_id

    def sign(self, name: str, issued_at: int) -> str:
        """`name.issued_at.signature`; `issued_at` in Unix seconds."""
        said = f"{name}.{issued_at:x}"
        return f"{said}.{self._digest(said)}"

    def check(self, query_id: str) -> None:
        """Raises Problem 422 for an id that this server did not give, or too long ago."""
        said, _, signature = query_id.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._digest(said).encode()):
            raise Problem(422, "unknown_query", "is none that this server gave with an answer", "query_id")
        if time.time() - int(said.rpartition(".")[2], 16) > VALID_S:
            raise Problem(422, "expired_query", f"is older than {VALID_S // 86_400} days", "query_id")

    async def said(self, request: Request, asked: FeedbackRequest) -> tuple[int, int]:
        """How many events were stored, and how many had been before. Raises Problem: 422, 429, 503."""
        client = self.client_of(request, asked.client)
        self.admit(client)
        for event in asked.events:
            self.check(event.query_id)
        new = {(event.query_id, event.product_id, event.kind): event for event in asked.events}
        new = {key: event for key, event in new.items() if key not in self.seen}
        now = datetime.now(UTC)
        blank: dict[str, Any] = {"position": None, "features": None, "shuffled": None, "client": client, "at": now}
        if new:
            await self.records.add([event.model_dump() | blank for event in new.values()])
        for key in new:
            self.seen[key] = None
        while len(self.seen) > MAX_CLIENTS:
            self.seen.popitem(last=False)
        return len(new), len(asked.events) - len(new)

    def client_of(self, request: Request, named: str | None) -> str:
        """Digest of who it is, of today: with an API key whom the shop names, otherwise the address that asks."""
        key = about_request.get({}).get("client", "")
        header = self.config.client_header
        address = (request.headers.get(header, "") if header else "") or (request.client.host if request.client else "")
        who = f"{key}/{named}" if key and named else f"{key}/{address.rpartition(',')[2].strip()}"
        return self._digest(f"{datetime.now(UTC).date()}/{who}")

    def admit(self, client: str) -> None:
        """Raises Problem 429 for a client that says too much."""
        per_min = self.config.feedback_per_min
        bucket = self.buckets.pop(client, None) or Bucket(per_min / 60, burst=per_min / 4)
        self.buckets[client] = bucket
        if len(self.buckets) > MAX_CLIENTS:
            self.buckets.popitem(last=False)
        if wait_s := bucket.wait_s():
            limit = f"more than {per_min:g} calls a minute by one client"
            raise Problem(429, "rate_limited", limit, headers={"Retry-After": str(int(wait_s) + 1)})

    def _digest(self, said: str) -> str:
        return hmac.new(self.secret, said.encode(), hashlib.sha256).hexdigest()[:24]


def secret_of(root: Path) -> bytes:
    """The secret that all replicas over this store share, made by the first one; readable by its owner alone."""
    path = root / SECRET_FILE
    if not path.is_file():
        mine = root / f".{SECRET_FILE}-{os.getpid()}-{secrets.token_hex(4)}"
        root.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(mine, path)  # only the first one wins
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return path.read_bytes()
