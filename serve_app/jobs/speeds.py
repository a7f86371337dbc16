"""How fast the editors of each group are: learned from finished edits, used to predict what is left to do."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs import tables
from serve_app.jobs.database import Database
from serve_app.jobs.records import Claim
from serve_app.policy.routing import UNMEASURED_WORK_S
from serve_app.policy.scaling import Backlog
from serve_app.tasks import EditDone

# The weight of the newest measurement in the average of a speed.
NEWEST = 0.2


async def measure(database: Database, connection: AsyncConnection, claim: Claim, done: EditDone) -> None:
    """Learn from a finished edit the speed of its editors, and how long they work outside the steps."""
    seconds = done.timings.get("generate", 0.0)
    if seconds <= 0.0 or claim.work <= 0.0:
        return
    measured = {"flops_per_s": claim.work / seconds, "other_share": other_share(done.timings)}
    new = database.insert(tables.speeds).values(editor_group=claim.task.plan.editor_group, **measured)
    known = tables.speeds.c
    averages = {
        name: (1 - NEWEST) * sa.func.coalesce(known[name], new.excluded[name]) + NEWEST * new.excluded[name]
        for name in measured
    }
    await connection.execute(new.on_conflict_do_update(index_elements=[known.editor_group], set_=averages))


def other_share(timings: Mapping[str, float]) -> float:
    """The part of an edit's time (0 to 1) that comes after its last step: decoding and storing.

    `generate` contains decoding and what comes before the first step.
    """
    generate, save = timings.get("generate", 0.0), timings.get("save", 0.0)
    decode = min(timings.get("decode", 0.0), generate)
    return (decode + save) / (generate + save)


def backlog_of(row: sa.Row[Any]) -> Backlog:
    """The backlog in a row of `queries.backlogs`, in seconds.

    The seconds come from the speed of finished edits or, before the first one, from the number of images.
    """
    waiting = row.interactive + row.bulk
    if row.speed:
        waiting_s, running_s = row.work_waiting / row.speed, row.work_running / row.speed
    else:
        waiting_s, running_s = waiting * UNMEASURED_WORK_S, (row.images - waiting) * UNMEASURED_WORK_S
    return Backlog(waiting_s, running_s, row.images, max(0.0, row.oldest_s), row.interactive, row.bulk)
