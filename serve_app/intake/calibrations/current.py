"""Which measured losses hold for the tiers, the checkpoints and the LoRAs as they are now."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from serve_app.adapters.urls import is_url
from serve_app.config import AppConfig, ModelConfig, TierConfig, TierName
from serve_app.errors import LoraDownloadFailed, RequestError, ServiceError
from serve_app.intake.calibrations.losses import MeasuredLosses
from serve_app.jobs.calibrations import Calibration, CalibrationKey, Calibrations
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas.requests import Lora
from serve_app.tasks import AdapterUse

# The adapter of a LoRA. Its id is empty if only a download would show what is in the file. Raises ServiceError.
Describe = Callable[[Lora, ModelSpec], Awaitable[AdapterUse]]
# The keys of the tiers as they are now, for requests without LoRAs, by model and tier. None if the tier's own LoRA
# cannot be looked up at the moment.
CurrentTiers = Mapping[tuple[str, str], CalibrationKey | None]
# The identity of a file that is not there, or cannot be used.
NO_FILE = ""


class CurrentLosses:
    """Compares measured losses with the config and the files of this ingress.

    What cannot be looked up at the moment counts as unchanged.
    """

    def __init__(
        self, config: AppConfig, calibrations: Calibrations, losses: MeasuredLosses, describe: Describe
    ) -> None:
        self._config = config
        self._calibrations = calibrations
        self._losses = losses
        self._describe = describe

    async def tiers(self) -> CurrentTiers:
        """The tiers of all models as they are now."""
        tiers = [(model, name, tier) for model in self._config.models for name, tier in model.tiers.items()]
        keys = await asyncio.gather(*(self._key(*tier) for tier in tiers))
        return {(model.id, name): key for (model, name, _), key in zip(tiers, keys, strict=True)}

    async def mark(self) -> None:
        """Record which losses hold now: others are deleted after `jobs.loss_keep_s`. Raises StoreUnavailable.

        A tier's own LoRA is looked up even at a URL. A request's LoRAs at URLs are not: their losses are marked when a
        request finds them.
        """
        tiers, losses = await self.tiers(), await self._calibrations.all()
        candidates = [each for each in losses if holds_for_tier(each.key, tiers)]
        files = await self._files(candidates)
        await self._calibrations.mark_current([each.key for each in candidates if _has_files(each, files)])

    async def _key(self, model: ModelConfig, name: TierName, tier: TierConfig) -> CalibrationKey | None:
        adapter_id = None if tier.adapter is None else await self._adapter_id(tier.adapter, model.id)
        if tier.adapter is not None and adapter_id is None:
            return None
        return await self._losses.key(model, name, tier.digest(adapter_id), [])

    async def _adapter_id(self, path: str, model: str) -> str | None:
        """The identity of a LoRA's file, or NO_FILE. None if it cannot be looked up at the moment."""
        try:
            return (await self._describe(Lora(path=path), MODELS[model])).id or None
        except LoraDownloadFailed:
            return None
        except RequestError:
            return NO_FILE
        except ServiceError:
            return None

    async def _files(self, losses: Iterable[Calibration]) -> dict[tuple[str, str], str | None]:
        """The `_adapter_id` of each LoRA below the LoRA root that these losses name, by model and path."""
        loras = {(each.key.model, lora["path"]) for each in losses for lora in each.details["adapters"]}
        return {(model, path): await self._adapter_id(path, model) for model, path in loras if not is_url(path)}


def holds_for_tier(measured: CalibrationKey, tiers: CurrentTiers) -> bool:
    """Whether what was measured holds for the tier and the checkpoint as they are now."""
    place = (measured.model, measured.tier)
    if place not in tiers:
        return False
    current = tiers[place]
    if current is None:
        return True
    if (measured.settings, measured.checkpoint) != (current.settings, current.checkpoint):
        return False
    return not measured.content or not current.content or measured.content == current.content


def _has_files(loss: Calibration, files: Mapping[tuple[str, str], str | None]) -> bool:
    """Whether its LoRAs are the files that it was measured with. `files` has no URLs."""
    found = [(files.get((loss.key.model, lora["path"]), NO_FILE), lora["id"]) for lora in loss.details["adapters"]]
    return all(now is None or now == then for now, then in found)
