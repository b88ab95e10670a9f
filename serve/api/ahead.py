"""Work begun before it is known to be needed: a photo is analysed while its hash is still looked up."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
MEMORY = 0.9  # of how the queries before this one went


class Ahead(Generic[T]):
    """Begins it only where nothing else is asked, so that it takes time from nobody, and where it was mostly needed of late."""

    def __init__(self, is_cheap: bool) -> None:
        """`is_cheap`: work that is given up costs little; else none is begun ahead."""
        self.is_cheap, self.under_way, self.needed_frac = is_cheap, 0, 0.5

    @contextlib.contextmanager
    def begun(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Iterator[Callable[[], Awaitable[T]]]:
        """Calling what this yields says that `work` is needed, and gives its result; without that it is given up at the end."""
        needed = False
        self.under_way += 1
        task = asyncio.create_task(work()) if self._may_begin() else None

        def result() -> Awaitable[T]:
            nonlocal needed
            needed = True
            return task or work()

        try:
            yield result
        finally:
            self.under_way -= 1
            self.needed_frac = MEMORY * self.needed_frac + (1 - MEMORY) * needed
            if task is not None and not needed:
                task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else looks at it
                task.cancel()

    def _may_begin(self) -> bool:
        return self.is_cheap and self.under_way == 1 and self.needed_frac >= 0.5
