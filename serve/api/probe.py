"""Live recall: a small share of the queries is searched again exactly, on the side, and compared with what was answered."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from serve.api.metrics import Metrics
from serve.index.release import Candidate, Filters, merge_candidates

log = logging.getLogger(__name__)

TOP = 10
TIMEOUT_S = 60.0  # every stored vector is read: minutes of a large shard would say more about the disk than about recall

# (1, D) embedding, k, filters → per query the exact best k distinct products of one shard group.
AskExactly = Callable[[np.ndarray, int, Filters | None], Awaitable[list[list[Candidate]]]]


class RecallProbe:
    """At most one query at a time, so that the probe never costs more than one thread of each searcher."""

    def __init__(self, groups: Sequence[AskExactly], frac: float, metrics: Metrics, seed: int | None = None) -> None:
        self.groups, self.frac, self.metrics, self.random = groups, frac, metrics, random.Random(seed)
        self.running: asyncio.Task[None] | None = None

    def consider(self, embedding_D: np.ndarray, k: int, filters: Filters | None, answered: Sequence[Candidate]) -> None:
        """Perhaps search this query again. `answered`: its best k products, best first, fewer where no more were found."""
        if k >= TOP and self.running is None and self.random.random() < self.frac:
            self.running = asyncio.create_task(self._run(embedding_D, filters, answered[:TOP]))

    async def _run(self, embedding_D: np.ndarray, filters: Filters | None, answered: Sequence[Candidate]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await asyncio.gather(*(ask(embedding_D[None], TOP, filters) for ask in self.groups))
            exact = merge_candidates([candidates[0] for candidates in found], TOP)
            self.metrics.probed(*recall(answered, exact))
        except Exception as error:  # noqa: BLE001 - whatever happens to a probe, queries go on
            log.warning("event=probe_failed reason=%s", type(error).__name__)
        finally:
            self.running = None


def recall(answered: Sequence[Candidate], exact: Sequence[Candidate]) -> tuple[int, int]:
    """How many of the exact best products were answered, and how many there were to find.

    What was inserted after the release was built is in no shard (`product` -1) and is searched exactly anyway: its places in the
    answer are taken from both sides.
    """
    of_shards = {candidate.product_id for candidate in answered if candidate.product >= 0}
    expected = {candidate.product_id for candidate in exact[: TOP - (len(answered) - len(of_shards))]}
    return len(expected & of_shards), len(expected)
