"""The look-up of measured losses, and what a measurement holds for."""

import asyncio
from collections.abc import Collection

from serve_app.config import ModelConfig, TierName
from serve_app.jobs.calibrations import CalibrationKey, Calibrations, digest_of
from serve_app.models.checkpoint_content import checkpoint_content, checkpoint_name
from serve_app.tasks import Loss


class MeasuredLosses:
    """Finds what was measured, for every ingress, in the job database."""

    def __init__(self, calibrations: Calibrations) -> None:
        self._calibrations = calibrations
        # A checkpoint is read when an editor starts, so that another content needs a restart anyway.
        self._contents: dict[str, str | None] = {}

    async def find(
        self, model: ModelConfig, tier: TierName, tier_digest: str, adapters: Collection[str]
    ) -> Loss | None:
        """What was measured of a tier with this digest, for the checkpoint of `model` and this set of adapters' ids.

        None if nobody has measured it. Raises StoreUnavailable.
        """
        return await self._calibrations.find(await self.key(model, tier, tier_digest, adapters))

    async def key(
        self, model: ModelConfig, tier: TierName, tier_digest: str, adapters: Collection[str]
    ) -> CalibrationKey:
        """What a measurement of a tier holds for. `adapters` are the ids of the request's own adapters."""
        name = checkpoint_name(model)
        if name not in self._contents:
            self._contents[name] = await asyncio.to_thread(checkpoint_content, model)
        return CalibrationKey(model.id, tier, tier_digest, digest_of([name]), digest_of(adapters), self._contents[name])
