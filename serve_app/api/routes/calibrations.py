"""Routes about calibrations: how far each tier is from exact, and measuring it."""

from fastapi import APIRouter, Request

from serve_app import errors
from serve_app.api.bodies.json_bodies import JsonRoute
from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest, base_url_of
from serve_app.api.error_answers import error_docs
from serve_app.api.routes.inference import SUBMIT_ERRORS, IdempotencyKey
from serve_app.intake.calibrations.answers import run_info
from serve_app.intake.service import Service
from serve_app.schemas.calibrations import CalibrationList, CalibrationRequest, CalibrationRunInfo

# What only bodies of `POST /v1/inference` can be.
NOT_OF_CALIBRATIONS = (
    errors.BodyInvalid,
    errors.PresetNotFound,
    errors.PresetBroken,
    errors.MoeFormatNotSupported,
    errors.LoraFileRequired,
)
START_ERRORS = (
    errors.TrainingJobNotFound,
    errors.PreviewsImpossible,
    errors.SampleNotFound,
    errors.UploadQuotaExceeded,
    errors.InsufficientScope,
    *(error for error in SUBMIT_ERRORS if error not in NOT_OF_CALIBRATIONS),
)


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["calibrations"], dependencies=KEYS_IN_DOCS, route_class=JsonRoute)

    @routes.get("/v1/calibrations", responses=error_docs(errors.StoreUnavailable))
    async def calibrations(caller: CallerOfRequest) -> CalibrationList:
        """How far the images of each tier are from the exact ones, and how much faster they are, as it was measured.

        A tenant's key sees what was measured with LoRAs that the tenant may use.
        """
        return await service.calibrations.measured(caller)

    @routes.post("/v1/calibrations", status_code=202, responses=error_docs(*START_ERRORS))
    async def start_calibration(
        request: Request,
        body: CalibrationRequest,
        caller: CallerOfRequest,
        idempotency_key: IdempotencyKey = None,
    ) -> CalibrationRunInfo:
        """Measure tiers on prompts and control images, through the queue: in exact and in each tier.

        Its images are requests of priority bulk. When they have ended, the losses are measured and stored, in place of
        earlier ones of the same tier and LoRAs. The latents are not compared: only `edits-server calibrate` does so.
        Where there are API keys, it needs an operator's, since what it measures holds for all tenants. A repeat with
        the same `Idempotency-Key` is answered with that calibration as it stands.
        """
        base_url = base_url_of(service.config, request)
        run = await service.calibration_runs.start(body, caller, base_url, idempotency_key)
        return run_info(run)

    return routes
