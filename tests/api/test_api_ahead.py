"""Work begun ahead is used where it is needed, given up where it is not, and begun only where it takes time from nobody."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve.api.ahead import Ahead


class Work:
    """Counts how often it was begun, ended and given up."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.begun, self.ended, self.given_up = fault, 0, 0, 0

    async def __call__(self) -> int:
        self.begun += 1
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        self.ended += 1
        if self.fault is not None:
            raise self.fault
        return 7


async def query(ahead: Ahead[int], work: Work, *, needed: bool, meanwhile_s: float = 0.02) -> int | None:
    with ahead.begun(work) as result:
        await asyncio.sleep(meanwhile_s)
        return await result() if needed else None


def run(ask: Callable[[], Awaitable[Any]]) -> Any:
    async def all_of_it() -> Any:
        loop, faults = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda _, context: faults.append(context))
        found = await ask()
        await asyncio.sleep(0.05)
        assert not faults
        return found

    return asyncio.run(all_of_it())


def test_what_is_needed_was_done_meanwhile() -> None:
    ahead, work = Ahead[int](is_cheap=True), Work()

    async def ask() -> None:
        with ahead.begun(work) as result:
            await asyncio.sleep(0.05)
            assert work.ended == 1, "while something else was waited for"
            assert await result() == 7

    run(ask)
    assert work.begun == 1


def test_what_is_not_needed_is_given_up_and_soon_not_begun() -> None:
    ahead, work = Ahead[int](is_cheap=True), Work()
    assert run(lambda: query(ahead, work, needed=False, meanwhile_s=0.0)) is None
    assert (work.begun, work.ended) in ((0, 0), (1, 0))
    assert run(lambda: query(ahead, work, needed=False)) is None
    assert work.begun <= 1, "the last one was not needed"
    for _ in range(3):
        assert run(lambda: query(ahead, work, needed=True)) == 7
    begun = work.begun
    assert run(lambda: query(ahead, work, needed=False)) is None
    assert work.begun == begun + 1, "those before it were needed"


def test_beside_other_queries_nothing_is_begun_ahead() -> None:
    ahead, works = Ahead[int](is_cheap=True), [Work(), Work()]

    async def ask() -> None:
        await asyncio.gather(*(query(ahead, work, needed=False) for work in works))

    run(ask)
    assert [work.begun for work in works] == [1, 0]
    assert ahead.under_way == 0


def test_where_giving_up_is_dear_nothing_is_begun_ahead() -> None:
    work = Work()
    assert run(lambda: query(Ahead[int](is_cheap=False), work, needed=False)) is None
    assert work.begun == 0
    assert run(lambda: query(Ahead[int](is_cheap=False), work, needed=True)) == 7


def test_its_fault_is_raised_where_it_is_needed_and_lost_where_it_is_not() -> None:
    with pytest.raises(ValueError, match="no photo"):
        run(lambda: query(Ahead[int](is_cheap=True), Work(ValueError("no photo")), needed=True))
    assert run(lambda: query(Ahead[int](is_cheap=True), Work(ValueError("no photo")), needed=False)) is None
