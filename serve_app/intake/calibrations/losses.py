"""The look-up of measured losses, and what a measurement holds for."""

import asyncio
import time
from collections.abc import Collection

from serve_app.config import ModelConfig, TierName
from serve_app.jobs.calibrations import Calibration, CalibrationKey, Calibrations, digest_of
from serve_app.models.checkpoint_content import checkpoint_content, checkpoint_name

# How long the content of a checkpoint is valid (s), and how long a request waits for it (s).
AGAIN_S, PATIENCE_S = 300.0, 5.0


class MeasuredLosses:
    """Finds what was measured, for every ingress, in the job database."""

    def __init__(self, calibrations: Calibrations) -> None:
        self._calibrations = calibrations
        # The content of each checkpoint, and when it was looked for (s, monotonic).
        self._contents: dict[str, tuple[str | None, float]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    async def find(
        self, model: ModelConfig, tier: TierName, tier_digest: str, adapters: Collection[str]
    ) -> Calibration | None:
        """What was measured of a tier with this digest, for the checkpoint of `model` and this set of adapters' ids.

        None if nobody has measured it. Raises StoreUnavailable.
        """
        return await self._calibrations.find(await self.key(model, tier, tier_digest, adapters))

    async def key(
        self, model: ModelConfig, tier: TierName, tier_digest: str, adapters: Collection[str]
    ) -> CalibrationKey:
        """What a measurement of a tier holds for. `adapters` are the ids of the request's own adapters."""
        name = checkpoint_name(model)
        content = await self._content(name, model)
        return CalibrationKey(model.id, tier, tier_digest, digest_of([name]), digest_of(adapters), content)

    async def _content(self, name: str, model: ModelConfig) -> str | None:
        """The last known content of a checkpoint, looked for again now and then; None if it is not known."""
        known, at = self._contents.get(name, (None, 0.0))
        if known is None or time.monotonic() - at > AGAIN_S:
            if name not in self._looking:
                self._looking[name] = asyncio.create_task(self._look(name, model))
            # A store that does not answer must not stop requests.
            await asyncio.wait([self._looking[name]], timeout=PATIENCE_S)
        return self._contents.get(name, (None, 0.0))[0]

    async def _look(self, name: str, model: ModelConfig) -> None:
        try:
            found = await asyncio.to_thread(checkpoint_content, model)
        finally:
            del self._looking[name]
        last, _ = self._contents.get(name, (None, 0.0))
        self._contents[name] = found or last, time.monotonic()
