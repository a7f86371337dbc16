"""Puts the cells of sweeps into the queue, a few at a time, and records when a sweep has ended.

One ingress at a time has the duty. Even if two had it, no cell would become two requests: a cell's request id is given,
and the row of its sweep is locked while cells are submitted.
"""

import logging
from collections.abc import Callable

from serve_app.concurrency.loops import WakeUp, every
from serve_app.config import SweepsConfig
from serve_app.errors import StoreUnavailable
from serve_app.jobs.store import JobStore, owner_name
from serve_app.jobs.sweeps.queue import LimitsOf
from serve_app.telemetry.failures import log_failure
from serve_app.telemetry.metrics import NO_METER, Loop, Meter

logger = logging.getLogger(__name__)

DUTY = "sweep_cells"
# How often cells are submitted while a sweep has some left (s), and how long an ingress takes the duty for (s).
PERIOD_S, DUTY_S = 1.0, 10.0


class SweepCells:
    """`run` until cancelled."""

    def __init__(
        self,
        store: JobStore,
        config: SweepsConfig,
        limits_of: LimitsOf,
        submitted: Callable[[], None],
        meter: Meter = NO_METER,
    ) -> None:
        """`limits_of` says how many images of a tenant may wait, and its quotas.

        `submitted` is called when there is new work.
        """
        self._queue = store.sweep_queue
        self._take_duty = store.take_duty
        self._config = config
        self._limits_of = limits_of
        self._submitted = submitted
        self._meter = meter
        self._owner = owner_name()
        self._wake_up = WakeUp()

    def wake(self) -> None:
        """Look for cells at once."""
        self._wake_up.set()

    async def run(self) -> None:
        await every(PERIOD_S, self.submit, loop=Loop.SWEEP_CELLS, meter=self._meter, pause=self._wake_up.pause)

    async def submit(self) -> None:
        """Submit what may wait in the queue now, as long as this process has the duty. Raises StoreUnavailable."""
        # Without sweeps, nothing is written.
        if not await self._queue.record_ends():
            return
        due = await self._queue.due()
        if not due or not await self._take_duty(DUTY, self._owner, DUTY_S):
            return
        for sweep_id in due:
            try:
                submitted = await self._queue.submit(sweep_id, self._config.max_waiting, self._limits_of)
            except StoreUnavailable:
                raise
            except Exception:
                # Other sweeps go on.
                log_failure(logger, "the cells of sweep %s could not be submitted", sweep_id)
                continue
            if submitted:
                self._submitted()
