"""What was measured, as clients see it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serve_app.config import AppConfig
from serve_app.intake.calibrations.current import CurrentLosses, holds_for_tier
from serve_app.intake.tenants import Caller
from serve_app.jobs.calibrations import Calibration, CalibrationRun, Calibrations
from serve_app.models.repeat_request import without_url_secrets
from serve_app.schemas.calibrations import CalibratedLora, CalibrationInfo, CalibrationList, CalibrationRunInfo
from serve_app.schemas.records import MeasuredLoss


class CalibrationAnswers:
    """Answers what is measured. A tenant sees what was measured with LoRAs that it may use."""

    def __init__(self, config: AppConfig, calibrations: Calibrations, current: CurrentLosses) -> None:
        self._config = config
        self._calibrations = calibrations
        self._current = current

    async def measured(self, caller: Caller) -> CalibrationList:
        """Raises StoreUnavailable."""
        found = [each for each in await self._calibrations.all() if _may_see(caller, each)]
        tiers = await self._current.tiers()
        runs = await self._calibrations.unfinished() + await self._calibrations.ended()
        sees_all = caller.is_operator or self._config.auth.keys_file is None
        return CalibrationList(
            calibrations=[_info(each, holds_for_tier(each.key, tiers), sees_all) for each in found],
            runs=[run_info(run) for run in runs if caller.is_operator or run.tenant == caller.tenant],
        )


def _may_see(caller: Caller, calibration: Calibration) -> bool:
    return all(caller.may_use_lora(lora["path"]) for lora in calibration.details["adapters"])


def _settings(settings: Mapping[str, Any], sees_all: bool) -> dict[str, Any]:
    """The settings of a tier without secrets, and for tenants without the operator's file."""
    shown = {name: value for name, value in settings.items() if sees_all or name != "adapter"}
    return {name: without_url_secrets(value) if isinstance(value, str) else value for name, value in shown.items()}


def _set_name(details: Mapping[str, Any], sees_all: bool) -> str:
    """Where the cases came from. Tenants do not learn the name of a training job."""
    job = details.get("training_job")
    return f"training job {job}" if sees_all and job is not None else str(details["set"])


def _info(calibration: Calibration, is_current: bool, sees_all: bool) -> CalibrationInfo:
    """What was measured, for an operator or for a tenant."""
    key, loss, details = calibration.key, calibration.loss, calibration.details
    return CalibrationInfo(
        model=key.model,
        tier=key.tier,
        loras=[CalibratedLora.model_validate(lora) for lora in details["adapters"]],
        is_current=is_current,
        loss=MeasuredLoss.model_validate(asdict(loss)),
        speedup=round(loss.exact_s / loss.tier_s, 3) if loss.tier_s else 0.0,
        measured_at=loss.measured_at,
        settings=_settings(details["tier"], sees_all),
        checkpoint=without_url_secrets(details["checkpoint"]),
        set=_set_name(details, sees_all),
        sizes=details["sizes"],
        steps=details["steps"],
        guidance_scales=details.get("guidance_scales", []),
        how=details["how"],
    )


def run_info(run: CalibrationRun) -> CalibrationRunInfo:
    """A calibration that goes through the queue."""
    requests = [name for each in run.comparisons for name in (each.exact_request, each.tier_request)]
    return CalibrationRunInfo(
        id=run.id,
        model=run.model,
        tiers=list(dict.fromkeys(each.key.tier for each in run.comparisons)),
        requests=list(dict.fromkeys(requests)),
        created_at=run.created_at,
        ended_at=run.ended_at,
        problem=run.problem,
    )
