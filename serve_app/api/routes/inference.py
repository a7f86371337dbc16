"""Routes that take requests in: submit one, or only explain it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request

from serve_app import errors
from serve_app.api.bodies.inference_bodies import FORM_DOCS, InferenceRoute, PartsOfRequest, release
from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest, links_of
from serve_app.api.error_answers import error_docs
from serve_app.intake.answers.bodies import Links, result_of
from serve_app.intake.service import Service
from serve_app.schemas.answers import Explanation, RequestResult, Submitted
from serve_app.schemas.requests import InferenceRequest
from serve_app.schemas.text import LookupText

# The errors of a POST, in the order of the checks.
EXPLAIN_ERRORS = (
    errors.PresetNotFound,
    errors.PresetBroken,
    errors.ModelNotFound,
    errors.LoraFileRequired,
    errors.MoeFormatNotSupported,
    errors.SingleLoraOnly,
    errors.TooManyLoras,
    errors.LoraPathForbidden,
    errors.LoraNotFound,
    errors.ControlImageRequired,
    errors.TooManyControlImages,
    errors.ControlImageInvalid,
    errors.InvalidParameter,
    errors.QualityUnavailable,
    errors.LoraInvalidFile,
    errors.LoraIncompatible,
    errors.LoraDownloadFailed,
    errors.BodyInvalid,
    errors.Overloaded,
    errors.StoreUnavailable,
    errors.StorageFailed,
)
SUBMIT_ERRORS = (
    *EXPLAIN_ERRORS,
    errors.IdempotencyConflict,
    errors.QueueFull,
    errors.TooManyUnfinished,
    errors.GpuQuotaExceeded,
    errors.StorageQuotaExceeded,
)
MAX_WAIT_S = 300.0
MAX_KEY_CHARS = 255
IdempotencyKey = Annotated[
    LookupText | None,
    Header(
        min_length=1,
        max_length=MAX_KEY_CHARS,
        description="A name for this request, chosen by the sender: the same name and body are the same request.",
    ),
]


def router(service: Service) -> APIRouter:
    routes = APIRouter(
        tags=["inference"],
        dependencies=KEYS_IN_DOCS,
        route_class=InferenceRoute,
    )
    LinksOfRequest = Depends(links_of(service))

    @routes.post("/v1/inference", responses=error_docs(*SUBMIT_ERRORS), openapi_extra=FORM_DOCS)
    async def submit(
        request: Request,
        body: InferenceRequest,
        parts: PartsOfRequest,
        caller: CallerOfRequest,
        links: Annotated[Links, LinksOfRequest],
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the result.")] = 0,
        idempotency_key: IdempotencyKey = None,
    ) -> Submitted | RequestResult:
        """Accept a request. Once this is answered, the request is stored and will finish, even if this process dies.

        With `wait` the answer is the result, if the request ends in time. A repeat with the same `Idempotency-Key` is
        answered with the request's current status.
        """
        record, is_new = await service.submissions.submit(body, caller, links.base_url, idempotency_key, parts)
        if wait:
            await release(request, body)
            record = await service.queries.wait_until_ended(record, wait)
            if record.status.ended:
                return result_of(record, links)
        url = f"{links.base_url}/v1/requests/{record.id}"
        return Submitted(
            request_id=record.id,
            status="queued" if is_new else record.status,
            status_url=f"{url}/status",
            result_url=f"{url}/result",
            created_at=record.created_at,
        )

    @routes.post("/v1/explain", responses=error_docs(*EXPLAIN_ERRORS), openapi_extra=FORM_DOCS)
    async def explain(body: InferenceRequest, parts: PartsOfRequest, caller: CallerOfRequest) -> Explanation:
        """What a request would do: every effective value, down to sizes and kernels. No image is made."""
        return await service.submissions.explain(body, caller, parts)

    return routes
