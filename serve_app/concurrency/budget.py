"""Budgets: amounts of memory, connections or threads that tenants share.

A tenant holds at most its share. Of the waiting tenants, the one that holds least is served first; within a tenant,
waiters are served in the order of their calls. So a tenant that asks for everything delays another one only until the
next release.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import Overloaded


class Hold:
    """The amount that one user of a budget holds, 0 at first. Not for use by several tasks at a time."""

    def __init__(self, budget: "Budget", tenant: str) -> None:
        self._budget = budget
        self.tenant = tenant
        self.amount = 0

    async def take(self, amount: int) -> None:
        """Wait for `amount`, or for the tenant's whole share if that is less. Raises Overloaded after `patience_s`.

        Only for a hold that holds nothing: one that waits for more while it holds something could wait for itself.
        """
        assert self.amount == 0, "this hold already holds something"
        self.amount = await self._budget._take(self.tenant, amount)

    def take_now(self, amount: int, spare: int = 0) -> None:
        """Change the held amount to `amount`, or to the tenant's whole share if that is less, without waiting.

        Raises Overloaded if the budget does not have that much, or if less than `spare` would be left.
        """
        amount = min(amount, self._budget.share)
        self._budget._take_now(self.tenant, amount - self.amount, spare)
        self.amount = amount

    def shrink_to(self, amount: int) -> None:
        """Release everything beyond `amount`."""
        surplus = self.amount - amount
        if surplus > 0:
            self.amount = amount
            self._budget._release(self.tenant, surplus)


class Budget:
    """An amount `total`, of which one tenant may hold at most `share`. For use in one event loop.

    A caller waits for at most `patience_s` seconds. `what` names the purpose in the error that a client gets then.
    """

    def __init__(self, total: int, share: int, patience_s: float, what: str) -> None:
        self.total = total
        self.share = min(share, total)
        self._patience_s = patience_s
        self._what = what
        self._held: Counter[str] = Counter()
        self._free = total
        # Waiting amounts by tenant; no queue in it is empty.
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def held(self) -> int:
        """The amount that all tenants together hold."""
        return self.total - self._free

    @contextmanager
    def hold(self, tenant: str) -> Iterator[Hold]:
        """An empty hold. Whatever it holds at the end of the block is released."""
        hold = Hold(self, tenant)
        try:
            yield hold
        finally:
            hold.shrink_to(0)

    async def _take(self, tenant: str, amount: int) -> int:
        amount = min(amount, self.share)
        place = (amount, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(tenant, deque()).append(place)
        self._grant_waiting()
        granted = place[1]
        try:
            # `asyncio.wait_for` would cancel or hide a grant that comes at the same moment as the timeout.
            if not granted.done():
                await asyncio.wait([granted], timeout=self._patience_s)
        except asyncio.CancelledError:
            self._withdraw(tenant, place)
            raise
        if not granted.done():
            self._withdraw(tenant, place)
            raise self.overloaded()
        return amount

    def _take_now(self, tenant: str, amount: int, spare: int) -> None:
        if self._free - amount < spare or self._held[tenant] + amount > self.share:
            raise self.overloaded()
        self._free -= amount
        self._held[tenant] += amount

    def overloaded(self) -> Overloaded:
        """The error for a client whose request gets nothing of this budget."""
        return Overloaded(f"this service has no capacity for {self._what} at the moment; send the request again later")

    def _withdraw(self, tenant: str, place: tuple[int, asyncio.Future[None]]) -> None:
        """Leave the queue, or release the amount if it has been granted."""
        amount, granted = place
        if granted.done():
            self._release(tenant, amount)
            return
        queue = self._waiting[tenant]
        queue.remove(place)
        if not queue:
            del self._waiting[tenant]
        # Smaller amounts behind this one may fit now.
        self._grant_waiting()

    def _release(self, tenant: str, amount: int) -> None:
        self._free += amount
        self._held[tenant] -= amount
        if not self._held[tenant]:
            del self._held[tenant]
        self._grant_waiting()

    def _grant_waiting(self) -> None:
        """Grant waiting amounts in order until one does not fit. Those behind it wait too, or it would starve."""
        while (tenant := self._next_tenant()) is not None:
            queue = self._waiting[tenant]
            amount, granted = queue[0]
            if amount > self._free:
                return
            queue.popleft()
            if not queue:
                del self._waiting[tenant]
            self._free -= amount
            self._held[tenant] += amount
            granted.set_result(None)

    def _next_tenant(self) -> str | None:
        """The tenant to serve next: of those whose share has room, the one that holds least, then the first waiter."""
        room = (name for name, queue in self._waiting.items() if self._held[name] + queue[0][0] <= self.share)
        return min(room, key=lambda name: self._held[name], default=None)
