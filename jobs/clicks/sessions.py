"""What shoppers were shown and what they did: the table `feedback` as arrays.

A session is one answered query: its products by position, each with its ranking features, and the clicks and purchases on them.
Letters: S sessions, L positions (padded), F features.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.ranking.ranker import FEATURES
from serve.ranking.records import IMPRESSION, PURCHASE


@dataclass(frozen=True)
class Sessions:
    """S sessions, padded to L positions; `shown` says which positions were filled."""

    features_SLF: np.ndarray  # float32
    gains_SL: np.ndarray  # float64: 0 = passed over, 1 = clicked, more = bought
    shown_SL: np.ndarray  # bool
    shuffled_S: np.ndarray  # bool: shown in an order drawn by lot

    def __len__(self) -> int:
        return len(self.shown_SL)

    @property
    def clicked_SL(self) -> np.ndarray:
        """Bool."""
        return np.asarray(self.gains_SL > 0)

    def pick(self, sessions: np.ndarray) -> "Sessions":
        """Some of them, by number or mask."""
        return Sessions(self.features_SLF[sessions], self.gains_SL[sessions], self.shown_SL[sessions], self.shuffled_S[sessions])


def sessions_of(feedback: pa.Table, purchase_gain: float, max_clicks_per_client: int) -> Sessions:
    """Sessions of the feedback rows, in the order of their query ids.

    An event counts once however often it was sent, and only on a product that the query was shown; of one client at most
    `max_clicks_per_client` sessions with a click count, those with the smallest query ids, so that nobody teaches alone.
    """
    impressions = feedback.filter(pc.equal(feedback["kind"], IMPRESSION)).sort_by(
        [("query_id", "ascending"), ("position", "ascending")]
    )
    events: dict[tuple[str, str], float] = {}
    clients: dict[str, str] = {}
    columns = [feedback[name].to_pylist() for name in ("query_id", "product_id", "kind", "client")]
    for query_id, product_id, kind, client in zip(*columns, strict=True):
        if kind != IMPRESSION:
            gain = purchase_gain if kind == PURCHASE else 1.0
            events[query_id, product_id] = max(events.get((query_id, product_id), 0.0), gain)
            clients.setdefault(query_id, client)
    used: Counter[str] = Counter()
    for query_id in sorted(clients):
        used[clients[query_id]] += 1
        if used[clients[query_id]] > max_clicks_per_client:
            del clients[query_id]
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for row in impressions.select(["query_id", "position", "product_id", "features", "shuffled"]).to_pylist():
        if len(row["features"]) == len(FEATURES):
            rows.setdefault(row["query_id"], {}).setdefault(row["position"], row)
    length = max((max(shown) + 1 for shown in rows.values()), default=1)
    sessions = Sessions(
        np.full((len(rows), length, len(FEATURES)), np.nan, np.float32),
        np.zeros((len(rows), length)),
        np.zeros((len(rows), length), bool),
        np.zeros(len(rows), bool),
    )
    for number, (query_id, shown) in enumerate(rows.items()):
        for position, row in shown.items():
            sessions.features_SLF[number, position] = row["features"]
            sessions.shown_SL[number, position] = True
            if query_id in clients:
                sessions.gains_SL[number, position] = events.get((query_id, row["product_id"]), 0.0)
            sessions.shuffled_S[number] = row["shuffled"]
    return sessions
