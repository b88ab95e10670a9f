"""Dynamic batching without a clock: what gathers while one batch is run is the next one.

A lone query never waits, and under load a batch is as large as the load makes it. Ray Serve's own @batch closes a batch when
batch_wait_timeout_s is over and then queues it behind the one that runs (ray/serve/batching.py, ray 2.60), so that a busy
replica runs many batches of the few queries that came within that window.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

PATIENT_SIZE = 2  # of what may wait in one batch
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batcher(Generic[Asked, Answer]):
    """`run` in one call of `executor` at a time, over up to `max_size` queries; used from one event loop.

    What may wait (a product that is put) is run in short batches, so that a query that comes meanwhile waits for no long one.
    Every batch of queries takes one of it along, so that it is not kept waiting for good; with `max_size` 1 it waits for a pause.
    """

    def __init__(self, run: Callable[[list[Asked]], list[Answer]], max_size: int, executor: Executor) -> None:
        self.run, self.max_size, self.executor = run, max_size, executor
        self.waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self.patient: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self.running: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked, *, may_wait: bool = False) -> Answer:
        """The answer to one query; what `run` raises, it raises for every query of its batch."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        (self.patient if may_wait else self.waiting).append((asked, answer))
        if self.running is None:
            self.running = asyncio.create_task(self._run_all())
        return await answer

    async def _run_all(self) -> None:
        """Batch after batch, until nobody waits."""
        while self.waiting or self.patient:
            taken_along = min(1, len(self.patient), self.max_size - 1)
            batch = [self.waiting.popleft() for _ in range(min(self.max_size - taken_along, len(self.waiting)))]
            num_patient = taken_along if batch else min(PATIENT_SIZE, len(self.patient), self.max_size)
            batch += [self.patient.popleft() for _ in range(num_patient)]
            batch = [(asked, answer) for asked, answer in batch if not answer.cancelled()]  # its client is gone
            if batch:
                await self._run(batch)
        self.running = None

    async def _run(self, batch: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        found = asyncio.get_running_loop().run_in_executor(self.executor, self.run, [asked for asked, _ in batch])
        await asyncio.wait([found])
        error = found.exception()
        for number, (_, answer) in enumerate(batch):
            if answer.done():
                continue
            if error is None:
                answer.set_result(found.result()[number])
            else:
                answer.set_exception(error)
