"""The processes behind the ingress, asked so that one that dies or hangs costs no answer."""

# Letters: Q query crops, D embedding width.

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from serve.api.problems import Problem
from serve.api.schemas import ShardCount
from serve.index.release import Candidate, Filters, merge_candidates

log = logging.getLogger(__name__)

Routes = Sequence[Sequence[str] | None]  # per crop the partitions to search; None = all
Lost = tuple[type[Exception], ...]  # what an ask raises when the process behind it is gone
AskShards = Callable[[np.ndarray, int, Routes, Filters | None], Awaitable[list[list[Candidate]]]]
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """Candidates of each crop, and how many shard groups they came from."""

    candidates: list[list[Candidate]]
    shards: ShardCount


class Searchers:
    """All shard groups as one: asked at the same time, merged; one that is lost is asked once more, then left out."""

    def __init__(self, groups: Sequence[AskShards], timeout_s: float, lost: Lost) -> None:
        self.groups, self.timeout_s, self.lost = groups, timeout_s, lost

    async def search(self, embeddings_QD: np.ndarray, k: int, routes: Routes, filters: Filters | None) -> Found:
        """The best k distinct products for each crop. Raises Problem 503 when no group answered."""
        asked = [ask_again(partial(ask, embeddings_QD, k, routes, filters), self.timeout_s, self.lost) for ask in self.groups]
        answered = [found for found in await asyncio.gather(*asked) if found is not None]
        if not answered:
            raise Problem(503, "no_shards", "no shard answered; try again", headers={"Retry-After": "1"})
        merged = [merge_candidates([found[q] for found in answered], k) for q in range(len(embeddings_QD))]
        return Found(merged, ShardCount(asked=len(self.groups), answered=len(answered)))


async def ask_again(ask: Callable[[], Awaitable[T]], timeout_s: float, lost: Lost) -> T | None:
    """`ask`, and once more when its process was lost on the way (a query changes nothing). None = no answer in time."""
    try:
        async with asyncio.timeout(timeout_s):
            try:
                return await ask()
            except lost:
                return await ask()
    except TimeoutError:
        log.warning("event=no_answer reason=timeout timeout_s=%g", timeout_s)
    except lost as error:
        log.warning("event=no_answer reason=%s", type(error).__name__)
    return None
