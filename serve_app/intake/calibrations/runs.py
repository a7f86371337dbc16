"""Calibrations that go through the queue: their images are ordinary requests, and losses are measured at their end."""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import partial

from serve_app.concurrency import background
from serve_app.concurrency.loops import every
from serve_app.config import AppConfig, ModelConfig, TierName
from serve_app.errors import (
    InsufficientScope,
    ModelNotFound,
    RequestNotFound,
    ServiceError,
    StorageFailed,
    StoreUnavailable,
)
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
from serve_app.intake.submission import Submissions, as_sent
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
# The duty is renewed before each comparison, which takes less.
PERIOD_S, DUTY_S = 3.0, 300.0
# How long the two requests of a comparison may take to submit (s). Later their process counts as dead, and what it has
# submitted is measured.
SUBMIT_S = 600.0
INCOMPLETE = "not all of its requests were submitted: send the calibration again, with another Idempotency-Key"
# The call that started the run says why; a repeat may have been given the run before.
REFUSED = "one of its requests was refused, and the others were cancelled: send the calibration again"


class _DutyLost(Exception):
    """Another process measures now."""


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

    async def start(
        self, wanted: CalibrationRequest, caller: Caller, base_url: str, idempotency_key: str | None = None
    ) -> CalibrationRun:
        """Send the requests of a calibration.

        With an idempotency key that was used for the same body, the earlier calibration is returned. Raises
        InsufficientScope, ModelNotFound, InvalidParameter, StoreUnavailable, and what a submission raises.

        If one of them is refused, those before it are cancelled. If the process dies, those of complete comparisons are
        measured.
        """
        _refuse_tenants(caller, self._config)
        digest = None
        if idempotency_key is not None:
            digest = await asyncio.to_thread(digest_of_calibration, wanted)
            if earlier := await self._store.calibrations.earlier(caller.tenant, idempotency_key, digest):
                return earlier
        model = self._model(wanted.model)
        tiers = chosen_tiers(model, wanted.tiers)
        cases = await self._cases(wanted, caller)
        new = CalibrationRun(
            uuid.uuid4().hex,
            caller.tenant,
            model.id,
            (),
            created_at=0.0,
            idempotency_key=idempotency_key,
            body_sha256=digest,
        )
        sent: list[RequestRecord] = []
        comparisons: list[Comparison] = []
        try:
            kept = await self._store.calibrations.start(new, SUBMIT_S)
            if kept.id != new.id:
                return kept
            for loras in sets_of(wanted):
                async for comparison in self._send(model, tiers, loras, cases, sent, caller, base_url):
                    comparisons.append(comparison)
                    if not await self._store.calibrations.extend(new.id, comparisons, SUBMIT_S):
                        raise _too_late()
            run = await self._store.calibrations.submitted(new.id)
            if run is None:
                raise _too_late()
        except BaseException:
            await background.shielded(self._undo(new.id, sent))
            raise
        return run

    async def _undo(self, run_id: str, sent: Sequence[RequestRecord]) -> None:
        """Cancel each request, and refuse the run unless a request could not be cancelled: then it is measured."""
        all_cancelled = True
        for record in sent:
            try:
                await self._submissions.cancel(record, purge=False)
            except Exception:
                log_failure(logger, "the request %s of a refused calibration could not be cancelled", record.id)
                all_cancelled = False
        if all_cancelled:
            with suppress(ServiceError):
                await self._store.calibrations.refuse(run_id, REFUSED)

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
    ) -> AsyncGenerator[Comparison]:
        """Send the requests for one set of LoRAs, and append them to `sent`."""

        async def submitted(tier: TierName | None) -> RequestRecord:
            request = request_of(model, tier, loras, cases)
            record, _ = await self._submissions.submit(request, caller, base_url, calibrates=True)
            sent.append(record)
            return record

        # Shielded: a request that is committed although the caller was cancelled must be among `sent`.
        exact = await background.shielded(submitted(None))
        plans = [image.plan for image in exact.images]
        adapters = own_adapters(plans[0])
        for tier in tiers:
            record = await background.shielded(submitted(tier))
            digest = model.tiers[tier].digest(tier_adapter_id(record.images[0].plan))
            key = await self._losses.key(model, tier, digest, [use.id for use in adapters])
            details = details_of(model, model.tiers[tier], plans, cases, BY_QUEUE)
            details |= {"on": measured_on(cases, plans)}
            yield Comparison(key, details, exact.id, record.id)

    async def run(self) -> None:
        await every(PERIOD_S, self.measure_ended, loop=Loop.CALIBRATIONS, meter=self._meter)

    async def measure_ended(self) -> None:
        """Measure the calibrations whose requests have ended, if this process has the duty. Raises StoreUnavailable."""
        calibrations = self._store.calibrations
        ids = await calibrations.submitted_ids()
        if not ids or not await self._has_duty():
            return
        for run_id in ids:
            run = await calibrations.under_way(run_id)
            if run is None or await self._store.retention.unfinished(requests_of(run)):
                continue
            try:
                problem = await self._measured(run)
            except _DutyLost:
                return
            await calibrations.end(run.id, problem)

    async def _has_duty(self) -> bool:
        return await self._store.take_duty(DUTY, self._owner, DUTY_S)

    async def _record(self, request_id: str) -> RequestRecord | None:
        try:
            return await self._store.requests.get(request_id)
        except RequestNotFound:
            return None

    async def _measured(self, run: CalibrationRun) -> str | None:
        """`_measure`, where an unforeseen failure is a problem of this run alone: others go on."""
        try:
            return await self._measure(run)
        except (StoreUnavailable, _DutyLost):
            raise
        except Exception:
            log_failure(logger, "the calibration %s could not be measured", run.id)
            return "it could not be measured; the service's log says why"

    async def _measure(self, run: CalibrationRun) -> str | None:
        """Measure and keep what can be. Returns why the rest cannot, None if there is none. Raises _DutyLost."""
        problems = [] if run.submitting_until is None else [INCOMPLETE]
        for each in run.comparisons:
            if not await self._has_duty():
                raise _DutyLost
            exact, tier = await self._record(each.exact_request), await self._record(each.tier_request)
            try:
                pairs = await asyncio.to_thread(self._pairs, exact, tier)
            except (ValueError, StorageFailed) as error:
                problems.append(f"{each.key.tier}, {each.details['on']}: {error}")
                continue
            loss = loss_of(pairs, each.details["on"], await self._store.now())
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


def requests_of(run: CalibrationRun) -> list[str]:
    """The ids of the run's requests, each once."""
    return sorted({name for each in run.comparisons for name in (each.exact_request, each.tier_request)})


def sets_of(wanted: CalibrationRequest) -> list[list[Lora]]:
    """The sets of LoRAs to measure; the empty one is the model without LoRAs."""
    return [[], *wanted.loras] if wanted.base else wanted.loras


def digest_of_calibration(wanted: CalibrationRequest) -> str:
    """The SHA-256 (hex) of everything that a calibration asks for, unknown fields included."""
    asked = as_sent(wanted, exclude={"loras", "prompts"})
    asked |= {"loras": [[as_sent(lora) for lora in loras] for loras in wanted.loras]}
    asked |= {"prompts": [as_sent(prompt) for prompt in wanted.prompts]}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _too_late() -> StoreUnavailable:
    return StoreUnavailable("the requests of this calibration took too long to submit: send it again with fewer LoRAs")


def _refuse_tenants(caller: Caller, config: AppConfig) -> None:
    if config.auth.keys_file is not None and not caller.is_operator:
        raise InsufficientScope("what a calibration measures holds for all tenants: it needs an operator's key")
