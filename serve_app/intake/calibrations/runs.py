"""Calibrations that go through the queue: their images are ordinary requests, and losses are measured at their end."""

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial

from serve_app.concurrency.loops import every
from serve_app.config import AppConfig, ModelConfig, TierName
from serve_app.errors import InsufficientScope, ModelNotFound, RequestNotFound, StorageFailed, StoreUnavailable
from serve_app.images.tier_loss import PairLoss, compare_pair, edit_seconds, loss_of
from serve_app.intake.calibrations.cases import Cases, training_cases
from serve_app.intake.calibrations.losses import MeasuredLosses
from serve_app.intake.calibrations.requests import (
    BY_QUEUE,
    chosen_tiers,
    details_of,
    measured_on,
    own_adapters,
    request_of,
    tier_adapter_id,
)
from serve_app.intake.submission import Submissions
from serve_app.intake.sweeps.sheet import opened
from serve_app.intake.tenants import Caller
from serve_app.intake.training.files import TrainingFiles
from serve_app.intake.uploads import Uploads
from serve_app.jobs.calibrations import Calibration, CalibrationRun, Comparison
from serve_app.jobs.records import ImageRecord, RequestRecord
from serve_app.jobs.store import JobStore, owner_name
from serve_app.schemas.calibrations import CalibrationRequest
from serve_app.schemas.requests import Lora
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import Status
from serve_app.telemetry.failures import log_failure
from serve_app.telemetry.metrics import NO_METER, Loop, Meter

logger = logging.getLogger(__name__)

DUTY = "calibrations"
# How often the service looks whether calibrations have ended (s), and how long an ingress takes the duty for (s).
PERIOD_S, DUTY_S = 3.0, 60.0


class CalibrationRuns:
    """Starts calibrations, and measures when their images are there: `run` until cancelled."""

    def __init__(
        self,
        config: AppConfig,
        store: JobStore,
        artifacts: Artifacts,
        losses: MeasuredLosses,
        submissions: Submissions,
        uploads: Uploads,
        files: TrainingFiles,
        meter: Meter = NO_METER,
    ) -> None:
        self._config = config
        self._store = store
        self._artifacts = artifacts
        self._losses = losses
        self._submissions = submissions
        self._uploads = uploads
        self._files = files
        self._meter = meter
        self._owner = owner_name()

    async def start(self, wanted: CalibrationRequest, caller: Caller, base_url: str) -> CalibrationRun:
        """Send the requests of a calibration.

        Raises InsufficientScope, ModelNotFound, InvalidParameter, and what a submission raises.

        If one of them is refused, those before it are cancelled.
        """
        _refuse_tenants(caller, self._config)
        model = self._model(wanted.model)
        tiers = chosen_tiers(model, wanted.tiers)
        cases = await self._cases(wanted, caller)
        sent: list[RequestRecord] = []
        comparisons: list[Comparison] = []
        try:
            for loras in sets_of(wanted):
                comparisons += await self._send(model, tiers, loras, cases, sent, caller, base_url)
        except BaseException:
            for record in sent:
                await self._submissions.cancel(record, purge=False)
            raise
        run = CalibrationRun(uuid.uuid4().hex, caller.tenant, model.id, tuple(comparisons), time.time())
        await self._store.calibrations.start(run)
        return run

    def _model(self, name: str) -> ModelConfig:
        models = {model.id: model for model in self._config.models}
        if name not in models:
            raise ModelNotFound(
                f"this service has no model {name!r}; it has: {', '.join(models)}", {"supported_models": list(models)}
            )
        return models[name]

    async def _cases(self, wanted: CalibrationRequest, caller: Caller) -> Cases:
        """The prompts of the body, or those of the training job, whose control images are uploaded."""
        if wanted.training_job is None:
            return Cases("the request", wanted.prompts)
        read = partial(training_cases, self._files, wanted.training_job, wanted.model, caller)
        cases = await self._files.in_thread(read)
        uploads = {name: await self._uploads.store(data, caller) for name, data in cases.files.items()}
        return cases.with_images({name: f"upload:{upload.sha256}" for name, upload in uploads.items()})

    async def _send(
        self,
        model: ModelConfig,
        tiers: Sequence[TierName],
        loras: Sequence[Lora],
        cases: Cases,
        sent: list[RequestRecord],
        caller: Caller,
        base_url: str,
    ) -> list[Comparison]:
        """Send the requests for one set of LoRAs, and append them to `sent`."""

        async def submitted(tier: TierName | None) -> RequestRecord:
            request = request_of(model, tier, loras, cases)
            record, _ = await self._submissions.submit(request, caller, base_url, calibrates=True)
            sent.append(record)
            return record

        exact = await submitted(None)
        plans = [image.plan for image in exact.images]
        adapters = own_adapters(plans[0])
        comparisons = []
        for tier in tiers:
            record = await submitted(tier)
            digest = model.tiers[tier].digest(tier_adapter_id(record.images[0].plan))
            key = await self._losses.key(model, tier, digest, [use.id for use in adapters])
            details = details_of(model, model.tiers[tier], plans, cases, BY_QUEUE)
            details |= {"on": measured_on(cases, adapters)}
            comparisons.append(Comparison(key, details, exact.id, record.id))
        return comparisons

    async def run(self) -> None:
        await every(PERIOD_S, self.measure_ended, loop=Loop.CALIBRATIONS, meter=self._meter)

    async def measure_ended(self) -> None:
        """Measure the calibrations whose requests have ended, if this process has the duty. Raises StoreUnavailable."""
        for run in await self._store.calibrations.unfinished():
            ids = {name for each in run.comparisons for name in (each.exact_request, each.tier_request)}
            records = {name: await self._record(name) for name in sorted(ids)}
            if any(record is not None and not record.status.ended for record in records.values()):
                continue
            if not await self._store.take_duty(DUTY, self._owner, DUTY_S):
                return
            await self._store.calibrations.end(run.id, await self._measured(run, records))

    async def _record(self, request_id: str) -> RequestRecord | None:
        try:
            return await self._store.requests.get(request_id)
        except RequestNotFound:
            return None

    async def _measured(self, run: CalibrationRun, records: Mapping[str, RequestRecord | None]) -> str | None:
        """`_measure`, where an unforeseen failure is a problem of this run alone: others go on."""
        try:
            return await self._measure(run, records)
        except StoreUnavailable:
            raise
        except Exception:
            log_failure(logger, "the calibration %s could not be measured", run.id)
            return "it could not be measured; the service's log says why"

    async def _measure(self, run: CalibrationRun, records: Mapping[str, RequestRecord | None]) -> str | None:
        """Measure and keep what can be. Returns why the rest cannot, None if there is none."""
        problems = []
        for each in run.comparisons:
            exact, tier = records[each.exact_request], records[each.tier_request]
            try:
                pairs = await asyncio.to_thread(self._pairs, exact, tier)
            except (ValueError, StorageFailed) as error:
                problems.append(f"{each.key.tier}, {each.details['on']}: {error}")
                continue
            loss = loss_of(pairs, each.details["on"], time.time())
            await self._store.calibrations.record(Calibration(each.key, loss, each.details))
            logger.info("measured %s of %s: at worst %s dB", each.key.tier, run.model, loss.psnr_db.worst)
        return "; ".join(problems) or None

    def _pairs(self, exact: RequestRecord | None, tier: RequestRecord | None) -> list[PairLoss]:
        """The loss of each case. Blocks. Raises ValueError that says what is missing, and StorageFailed."""
        if exact is None or tier is None:
            raise ValueError("a request was deleted before it was measured")
        for record in (exact, tier):
            if record.status is not Status.SUCCEEDED or record.purged:
                raise ValueError(f"the request {record.id} has no images: {record.error or record.status}")
        return [self._pair(*images) for images in zip(exact.images, tier.images, strict=True)]

    def _pair(self, exact: ImageRecord, tier: ImageRecord) -> PairLoss:
        assert exact.result is not None
        assert tier.result is not None
        images = [opened(self._artifacts, result.key) for result in (exact.result, tier.result)]
        if images[0] is None or images[1] is None:
            raise ValueError("an image was deleted before it was measured")
        seconds = [edit_seconds(result.timings) for result in (exact.result, tier.result)]
        return compare_pair(images[0], images[1], *seconds)


def sets_of(wanted: CalibrationRequest) -> list[list[Lora]]:
    """The sets of LoRAs to measure; the empty one is the model without LoRAs."""
    return [[], *wanted.loras] if wanted.base else wanted.loras


def _refuse_tenants(caller: Caller, config: AppConfig) -> None:
    if config.auth.keys_file is not None and not caller.is_operator:
        raise InsufficientScope("what a calibration measures holds for all tenants: it needs an operator's key")
