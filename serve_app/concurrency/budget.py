"""Budgets: amounts of memory, connections or threads that tenants share, each waiting its turn.

A tenant holds at most its share. Of the tenants that wait, the one that holds least is served first, and within a
tenant whoever came first. So a tenant that asks for everything cannot keep another one waiting for longer than it
takes until something is given back.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import Overloaded


class Hold:
    """What one user of a budget holds; nothing at first. One task at a time takes from it."""

    def __init__(self, budget: "Budget", tenant: str) -> None:
        self._budget = budget
        self.tenant = tenant
        self.amount = 0

    async def take(self, amount: int) -> None:
        """Hold `amount`, or the tenant's whole share if that is less. Raises Overloaded after the budget's patience.

        A hold takes once: whoever waits for more while it holds something could wait for itself.
        """
        assert self.amount == 0, "this hold has taken its amount already"
        self.amount = await self._budget._take(self.tenant, amount)

    def take_now(self, amount: int, spare: int = 0) -> None:
        """Hold `amount`, or the tenant's whole share if that is less, in place of what it holds. Does not wait.

        Raises Overloaded unless that much is there and leaves `spare` free.
        """
        amount = min(amount, self._budget.share)
        self._budget._take_now(self.tenant, amount - self.amount, spare)
        self.amount = amount

    def keep(self, amount: int) -> None:
        """Give back everything beyond `amount`."""
        surplus = self.amount - amount
        if surplus > 0:
            self.amount = amount
            self._budget._give_back(self.tenant, surplus)


class Budget:
    """`total` of something, of which one tenant holds at most `share`. For one event loop.

    `what` completes the sentence that a client gets after it has waited `patience_s`.
    """

    def __init__(self, total: int, share: int, patience_s: float, what: str) -> None:
        self.total = total
        self.share = min(share, total)
        self._patience_s = patience_s
        self._what = what
        self._held: Counter[str] = Counter()
        self._free = total
        # Nobody's deque is empty.
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def held(self) -> int:
        return self.total - self._free

    @contextmanager
    def hold(self, tenant: str) -> Iterator[Hold]:
        """A hold that gives back at the exit whatever it still has."""
        hold = Hold(self, tenant)
        try:
            yield hold
        finally:
            hold.keep(0)

    async def _take(self, tenant: str, amount: int) -> int:
        amount = min(amount, self.share)
        place = (amount, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(tenant, deque()).append(place)
        self._serve()
        granted = place[1]
        try:
            # `wait` and not `wait_for`: it neither cancels nor hides a grant that comes at the same moment.
            if not granted.done():
                await asyncio.wait([granted], timeout=self._patience_s)
        except asyncio.CancelledError:
            self._leave(tenant, place)
            raise
        if not granted.done():
            self._leave(tenant, place)
            raise self.no_room()
        return amount

    def _take_now(self, tenant: str, amount: int, spare: int) -> None:
        if self._free - amount < spare or self._held[tenant] + amount > self.share:
            raise self.no_room()
        self._free -= amount
        self._held[tenant] += amount

    def no_room(self) -> Overloaded:
        """What a client gets who cannot have any."""
        return Overloaded(f"this service has no room for {self._what} at the moment; send it again later")

    def _leave(self, tenant: str, place: tuple[int, asyncio.Future[None]]) -> None:
        """Undo what waiting or being served has done."""
        amount, granted = place
        if granted.done():
            self._give_back(tenant, amount)
            return
        line = self._waiting[tenant]
        line.remove(place)
        if not line:
            del self._waiting[tenant]
        # Whoever stood behind a large amount may fit.
        self._serve()

    def _give_back(self, tenant: str, amount: int) -> None:
        self._free += amount
        self._held[tenant] -= amount
        if not self._held[tenant]:
            del self._held[tenant]
        self._serve()

    def _serve(self) -> None:
        """Grant what fits, in turn. A large amount that does not fit holds up what is behind it, or it would starve."""
        while (tenant := self._next()) is not None:
            line = self._waiting[tenant]
            amount, granted = line[0]
            if amount > self._free:
                return
            line.popleft()
            if not line:
                del self._waiting[tenant]
            self._free -= amount
            self._held[tenant] += amount
            granted.set_result(None)

    def _next(self) -> str | None:
        """Who is served next: of those whose share has room, who holds least; of equals, who has waited longest."""
        room = (name for name, line in self._waiting.items() if self._held[name] + line[0][0] <= self.share)
        return min(room, key=lambda name: self._held[name], default=None)
