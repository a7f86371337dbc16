"""Rates: how many requests each tenant may still send, counted for all ingresses.

A minute is counted in slots of a few seconds: at most `limit` tokens are given out within any WINDOW_SLOTS slots, which
together are longer than a minute. An ingress takes a batch of tokens and spends them without asking again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from serve_app.jobs import tables
from serve_app.jobs.database import Database, transaction

WINDOW_S, SLOT_S = 60, 6
# The slots that any minute touches.
WINDOW_SLOTS = WINDOW_S // SLOT_S + 1

# How many tokens were taken in a slot, by the number of the slot since the epoch.
Slots = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Unspent:
    """Tokens that an ingress has taken in a slot and gives back."""

    slot: int
    tokens: int


@dataclass(frozen=True)
class Grant:
    """`tokens` were taken in `slot`, and `left` more may be taken now, and further ones `reset_s` seconds later."""

    tokens: int
    slot: int
    left: int
    reset_s: float


class Rates:
    """Every public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def take(self, tenant: str, kind: str, limit: int, wanted: int, unspent: Unspent | None = None) -> Grant:
        """Give back what was not spent, and take up to `wanted` tokens of the `limit` per minute.

        If the answer to the commit is lost, it is done again, and some tokens expire unspent.
        """
        rates = tables.rates.c
        mine = sa.and_(rates.tenant == tenant, rates.kind == kind)
        async with self._database.writing() as connection:
            new = self._database.insert(tables.rates).values(tenant=tenant, kind=kind, slots=[])
            await connection.execute(new.on_conflict_do_nothing())
            locked = sa.select(rates.slots, tables.now().label("now")).where(mine).with_for_update()
            row = (await connection.execute(locked)).one()
            slots, grant = granted([(slot, count) for slot, count in row.slots], row.now, limit, wanted, unspent)
            if grant.tokens or unspent:
                await connection.execute(tables.rates.update().where(mine).values(slots=slots))
        return grant


def granted(
    slots: Slots, now: float, limit: int, wanted: int, unspent: Unspent | None
) -> tuple[list[tuple[int, int]], Grant]:
    """The slots after a grant at the time `now` (s), and the grant."""
    slot = int(now // SLOT_S)
    counts = {each: count for each, count in slots if each > slot - WINDOW_SLOTS}
    if unspent is not None and unspent.slot in counts:
        counts[unspent.slot] = max(0, counts[unspent.slot] - unspent.tokens)
    free = max(0, limit - sum(counts.values()))
    tokens = min(wanted, free)
    if tokens:
        counts[slot] = counts.get(slot, 0) + tokens
    taken = [(each, count) for each, count in sorted(counts.items()) if count]
    oldest = taken[0][0] if taken else slot
    return taken, Grant(tokens, slot, free - tokens, max(0.0, (oldest + WINDOW_SLOTS) * SLOT_S - now))
