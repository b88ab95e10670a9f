"""Batches that form by themselves: what comes while one is run is the next."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from serve.api.batching import Batcher


class Doubling:
    """Doubles numbers, a batch at a time, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.let = Event()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.batches.append(numbers)
        assert self.let.wait(10)
        if 13 in numbers:
            raise ValueError("13")
        return [2 * number for number in numbers]


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


async def started(doubling: Doubling, batches: int) -> None:
    while len(doubling.batches) < batches:
        await asyncio.sleep(0.001)


def test_a_lone_one_is_run_at_once_and_those_that_come_meanwhile_together(thread: ThreadPoolExecutor) -> None:
    doubling = Doubling()

    async def ask() -> list[int]:
        batcher = Batcher(doubling, 3, thread)
        first = asyncio.create_task(batcher.ask(0))
        await started(doubling, 1)
        others = [asyncio.create_task(batcher.ask(number)) for number in range(1, 6)]
        await asyncio.sleep(0.01)
        doubling.let.set()
        answers = await asyncio.gather(first, *others)
        return [*answers, await batcher.ask(6)]

    assert asyncio.run(ask()) == [0, 2, 4, 6, 8, 10, 12]
    assert doubling.batches == [[0], [1, 2, 3], [4, 5], [6]]


def test_an_error_is_told_to_its_batch_alone_and_who_is_gone_is_not_run(thread: ThreadPoolExecutor) -> None:
    doubling = Doubling()

    async def ask() -> list[int | BaseException]:
        batcher = Batcher(doubling, 2, thread)
        first = asyncio.create_task(batcher.ask(0))
        await started(doubling, 1)
        others = [asyncio.create_task(batcher.ask(number)) for number in (1, 13, 2, 3)]
        await asyncio.sleep(0.01)
        others[2].cancel()
        doubling.let.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, one, thirteen, gone, three = asyncio.run(ask())
    assert (first, three) == (0, 6) and isinstance(gone, asyncio.CancelledError)
    assert isinstance(one, ValueError) and isinstance(thirteen, ValueError)
    assert doubling.batches == [[0], [1, 13], [3]]


def test_what_may_wait_lets_others_go_first_but_is_not_forgotten(thread: ThreadPoolExecutor) -> None:
    doubling = Doubling()

    async def ask() -> None:
        batcher = Batcher(doubling, 2, thread)
        asked = [asyncio.create_task(batcher.ask(0))]
        await started(doubling, 1)
        asked += [asyncio.create_task(batcher.ask(number, may_wait=True)) for number in (10, 11, 12, 14)]
        asked += [asyncio.create_task(batcher.ask(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.01)
        doubling.let.set()
        await asyncio.gather(*asked)

    asyncio.run(ask())
    assert doubling.batches == [[0], [1, 10], [2, 11], [3, 12], [14]]
