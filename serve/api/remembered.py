"""What lies near a photo of the catalog, remembered: popular photos come back again and again, and their answer is the same.

Keyed by catalog photos, so nothing of an upload is kept. Forgotten as soon as a product is put, changed or deleted.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

from serve.api.searchers import Found
from serve.index.inserts import Fresh

MAX_CANDIDATES = 100_000  # of all remembered answers together, some 300 bytes each


class Remembered:
    """The answers that were asked for last, of one release."""

    def __init__(self) -> None:
        self.fresh: Fresh | None = None
        self.found: OrderedDict[Hashable, Found] = OrderedDict()
        self.num_candidates = 0

    async def find(self, key: Hashable, fresh: Fresh, find: Callable[[], Awaitable[Found]]) -> Found:
        """What `find` found under `key` while the catalog was `fresh`; a partial answer is never kept."""
        if fresh is not self.fresh:
            self.found.clear()
            self.fresh, self.num_candidates = fresh, 0
        if key in self.found:
            self.found.move_to_end(key)
            return self.found[key]
        found = await find()
        if found.shards.answered == found.shards.asked and fresh is self.fresh and key not in self.found:
            self.found[key] = found
            self.num_candidates += size(found)
            while self.num_candidates > MAX_CANDIDATES:
                self.num_candidates -= size(self.found.popitem(last=False)[1])
        return found


def size(found: Found) -> int:
    """Candidates in it."""
    return sum(len(candidates) for candidates in found.candidates)
