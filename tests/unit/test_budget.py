"""Budgets: who gets how much, in which order, and what is left when somebody gives up at any moment."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from serve_app.concurrency.budget import Budget, Hold
from serve_app.concurrency.threads import Threads
from serve_app.errors import Overloaded


def budget_of(total: int, share: int | None = None, patience_s: float = 5.0) -> Budget:
    return Budget(total, share or total, patience_s, "this test")


async def settle() -> None:
    """Let every task go on as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Line:
    """Tasks that wait for a budget; `order` has the names of those that were served."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.order: list[str] = []
        self.done = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def join(self, tenant: str, amount: int = 1, name: str | None = None) -> None:
        async def hold() -> None:
            with self.budget.hold(tenant) as hold:
                await hold.take(amount)
                self.order.append(name or tenant)
                await self.done.wait()

        self.tasks.append(asyncio.create_task(hold()))
        await settle()

    async def end(self) -> None:
        self.done.set()
        await asyncio.gather(*self.tasks)


async def test_amounts_are_given_back():
    budget = budget_of(10)
    with budget.hold("a") as first, budget.hold("b") as second:
        await first.take(4)
        await second.take(6)
        assert budget.held == 10
        first.shrink_to(1)
        second.shrink_to(7)
        assert (budget.held, first.amount, second.amount) == (7, 1, 6)
    assert budget.held == 0


async def test_larger_amounts_than_a_share_count_as_the_share():
    budget = budget_of(10, share=5)
    with budget.hold("a") as hold:
        await hold.take(1000)
        assert hold.amount == 5


async def test_tenant_is_served_in_the_order_of_coming():
    line = Line(budget_of(1))
    for name in "1234":
        await line.join("a", name=name)
    await line.end()
    assert line.order == ["1", "2", "3", "4"]


async def test_tenant_has_no_more_than_its_share():
    line = Line(budget_of(4, share=2))
    for _ in range(10):
        await line.join("red")
    await line.join("blue")
    assert line.order == ["red", "red", "blue"]
    await line.end()
    assert line.order.count("red") == 10


async def test_whoever_holds_least_is_served_next():
    """Two tenants that wait with hundreds do not keep a third waiting for longer than one of theirs takes."""
    budget = budget_of(4, share=2)
    line = Line(budget)
    with budget.hold("red") as one, budget.hold("red") as two:
        await one.take(1)
        await two.take(1)
        for _ in range(100):
            await line.join("red")
        for _ in range(100):
            await line.join("green")
        await line.join("blue")
        assert line.order == ["green", "green"]
        one.shrink_to(0)
        await settle()
        assert line.order == ["green", "green", "blue"]
    await line.end()


async def test_large_amount_is_not_overtaken_for_ever():
    budget = budget_of(4)
    line = Line(budget)
    with budget.hold("small") as held:
        await held.take(2)
        await line.join("large", 3)
        await line.join("later", 1)
        assert line.order == []
    await settle()
    assert line.order == ["large", "later"]
    await line.end()


async def test_waiting_too_long_is_a_503():
    budget = budget_of(1, patience_s=0.05)
    with budget.hold("a") as first, budget.hold("b") as second:
        await first.take(1)
        with pytest.raises(Overloaded, match="no capacity for this test") as error:
            await second.take(1)
        assert (error.value.status, error.value.retryable, error.value.code) == (503, True, "OVERLOADED")
        first.shrink_to(0)
        # Nobody is left in the line who would be served in vain.
        assert budget.held == 0


async def test_waiter_behind_one_that_times_out_is_served():
    budget = budget_of(4, patience_s=0.1)
    with budget.hold("a") as held, budget.hold("b") as large, budget.hold("c") as small:
        await held.take(2)
        giving_up = asyncio.create_task(large.take(4))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(small.take(1))
        with pytest.raises(Overloaded):
            await giving_up
        await asyncio.wait_for(waiting, 1)
        assert (small.amount, budget.held) == (1, 3)


async def cancelled_after(ticks: int, work: Callable[[], Awaitable[None]]) -> None:
    """Run it, and cancel it after so many turns of the event loop, unless it has ended."""
    task = asyncio.ensure_future(work())
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("ticks", range(12))
@pytest.mark.parametrize("released_at", range(12))
async def test_nothing_is_lost_when_a_waiter_is_cancelled_at_any_moment(ticks, released_at):
    """A grant may come before, with or after the cancellation."""
    budget = budget_of(2)

    async def holder() -> None:
        with budget.hold("a") as hold:
            await hold.take(2)
            for _ in range(released_at):
                await asyncio.sleep(0)

    async def waiter() -> None:
        with budget.hold("b") as hold:
            await hold.take(2)
            await asyncio.sleep(0)
            hold.shrink_to(1)
            await asyncio.sleep(0)

    holds = asyncio.create_task(holder())
    await asyncio.sleep(0)
    await cancelled_after(ticks, waiter)
    await holds
    assert budget.held == 0
    with budget.hold("c") as hold:
        await asyncio.wait_for(hold.take(2), 1)


async def test_what_is_taken_now_is_there_at_once_or_refused():
    budget = budget_of(10, share=6)
    with budget.hold("a") as first, budget.hold("b") as second:
        first.take_now(2)
        first.take_now(100)
        assert (first.amount, budget.held) == (6, 6)
        for amount, spare in ((5, 0), (4, 1)):
            with pytest.raises(Overloaded, match="no capacity for this test"):
                second.take_now(amount, spare)
        second.take_now(4)
        second.take_now(1)
        assert (second.amount, budget.held) == (1, 7)
    assert budget.held == 0


async def test_hold_takes_once():
    budget = budget_of(2)
    hold = Hold(budget, "a")
    await hold.take(1)
    with pytest.raises(AssertionError):
        await hold.take(1)


async def test_thread_that_hangs_keeps_its_place_and_the_next_call_is_refused():
    threads, end = Threads(1, 0.05, "this test"), threading.Event()
    with pytest.raises(TimeoutError):
        await threads.run(lambda: end.wait(10), timeout_s=0.05)
    with pytest.raises(Overloaded):
        await threads.run(lambda: None)
    end.set()
    deadline = time.monotonic() + 5
    while threads._places.held:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert await threads.run(lambda: 5) == 5


async def test_thread_that_the_system_does_not_start_is_a_503(monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads(1, 1.0, "this test")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Overloaded, match="no capacity for this test"):
            await threads.run(lambda: None)
    assert await threads.run(lambda: 5) == 5


async def test_error_of_a_call_is_raised_and_its_thread_is_free():
    threads = Threads(1, 1.0, "this test")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("ticks", range(8))
async def test_caller_that_is_cancelled_at_any_moment_leaves_no_place_taken(ticks):
    threads = Threads(1, 5.0, "this test")
    await cancelled_after(ticks, lambda: threads.run(lambda: None))
    assert await asyncio.wait_for(threads.run(lambda: 5), 5) == 5
