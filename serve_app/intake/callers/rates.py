"""Rate limits: how many HTTP requests of each kind a tenant may send per minute, over all ingresses.

This ingress takes batches of tokens from the job database (`jobs/limits/rates.py`) and spends one per request, so that
most requests cost no query. What it has not spent within a slot it gives back, and takes anew.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.intake.tenants import Caller
from serve_app.jobs.limits.rates import SLOT_S, WINDOW_S, Rates, Unspent

# A batch is this part of the limit: what two ingresses hold back, and what they may pass too late, is a tenth.
BATCHES = 20


class RateKind(StrEnum):
    """Two limits: one for requests that make or change something, and one for all others."""

    SUBMIT = "submit"
    READ = "read"


@dataclass(frozen=True)
class Spent:
    """The outcome of one request. `left` more may follow, and further ones `reset_s` seconds later (rounded up)."""

    kind: RateKind
    limit: int
    is_allowed: bool
    left: int
    reset_s: int


@dataclass
class Lease:
    """Tokens of one tenant and kind that this ingress holds until a time (s, by its own clock).

    `left_elsewhere` is what was free in the database at the time of the last batch, which is asked again no earlier
    than `until`, or with the last token.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    limit: int = 0
    tokens: int = 0
    slot: int = 0
    left_elsewhere: int = 0
    until: float = 0.0
    reset_at: float = 0.0


class RateLimits:
    def __init__(self, rates: Rates, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._leases: dict[tuple[str, RateKind], Lease] = {}

    async def spend(self, caller: Caller, kind: RateKind) -> Spent | None:
        """Count one request of the caller; None if no limit applies. Operators have none.

        Raises StoreUnavailable.
        """
        limits = caller.limits
        limit = limits.submits_per_minute if kind is RateKind.SUBMIT else limits.reads_per_minute
        if limit is None or caller.is_operator:
            return None
        lease = self._leases.setdefault((caller.tenant, kind), Lease())
        async with lease.lock:
            if self._is_spent(lease, limit):
                await self._renew(lease, caller.tenant, kind, limit)
            is_allowed = lease.tokens > 0
            lease.tokens -= is_allowed
            reset_s = math.ceil(max(0.0, lease.reset_at - self._clock()))
            return Spent(kind, limit, is_allowed, lease.tokens + lease.left_elsewhere, reset_s)

    def _is_spent(self, lease: Lease, limit: int) -> bool:
        now = self._clock()
        if lease.limit != limit or now >= lease.until:
            return True
        # Without anything left, the database is asked again when something may have become free.
        return lease.tokens == 0 and (lease.left_elsewhere > 0 or now >= lease.reset_at)

    async def _renew(self, lease: Lease, tenant: str, kind: RateKind, limit: int) -> None:
        """Give back what was not spent, and take the next batch."""
        unspent = Unspent(lease.slot, lease.tokens) if lease.tokens else None
        lease.tokens = 0
        asked_at = self._clock()
        grant = await self._rates.take(tenant, kind, limit, math.ceil(limit / BATCHES), unspent)
        lease.limit, lease.tokens, lease.slot, lease.left_elsewhere = limit, grant.tokens, grant.slot, grant.left
        lease.until, lease.reset_at = asked_at + SLOT_S, asked_at + grant.reset_s


def policy_header(spent: Spent) -> str:
    """The value of RateLimit-Policy: draft-ietf-httpapi-ratelimit-headers, from version 08 on."""
    return f'"{spent.kind}";q={spent.limit};w={WINDOW_S}'


def limit_header(spent: Spent) -> str:
    """The value of RateLimit."""
    return f'"{spent.kind}";r={spent.left};t={spent.reset_s}'
