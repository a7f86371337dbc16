"""Requests come in."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request

from serve_app import errors
from serve_app.api.body_limits import release
from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest, base_url_of
from serve_app.api.error_answers import error_docs
from serve_app.api.json_body import JsonRoute
from serve_app.intake.answers import result_of
from serve_app.intake.service import Service
from serve_app.schemas import Explanation, InferenceRequest, RequestResult, ShapeErrors, Submitted
from serve_app.schemas.text import Question

# What a POST can be refused for, in the order of the checks.
EXPLAIN_ERRORS = (
    errors.Unauthorized,
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
    errors.LoraInvalidFile,
    errors.LoraIncompatible,
    errors.LoraDownloadFailed,
    errors.HostNotAllowed,
    errors.BodyTooLarge,
    errors.RequestTooSlow,
    errors.Overloaded,
    errors.StoreUnavailable,
    errors.StorageFailed,
)
SUBMIT_ERRORS = (*EXPLAIN_ERRORS, errors.IdempotencyConflict, errors.QueueFull)
MAX_WAIT_S = 300.0
MAX_KEY = 255


def router(service: Service) -> APIRouter:
    routes = APIRouter(
        tags=["inference"],
        dependencies=KEYS_IN_DOCS,
        responses={422: {"model": ShapeErrors}},
        route_class=JsonRoute,
    )
    BaseUrl = Depends(base_url_of(service))

    @routes.post("/v1/inference", responses=error_docs(*SUBMIT_ERRORS))
    async def submit(
        request: Request,
        body: InferenceRequest,
        caller: CallerOfRequest,
        base_url: Annotated[str, BaseUrl],
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the result.")] = 0,
        idempotency_key: Annotated[Question | None, Header(min_length=1, max_length=MAX_KEY)] = None,
    ) -> Submitted | RequestResult:
        """Accept a request. From the answer on it is stored, and reaches an end whatever happens here.

        With `wait` the answer is the result, if there is one in time. The same `Idempotency-Key` and body are
        the same request, however often they are sent: a repeat is answered with its status of now.
        """
        record, is_new = await service.submit(body, caller, base_url, idempotency_key)
        if wait:
            await release(request, body)
            record = await service.ended(record, wait)
            if record.status.ended:
                return result_of(record, service.place(base_url))
        url = f"{base_url}/v1/requests/{record.id}"
        return Submitted(
            request_id=record.id,
            status="queued" if is_new else record.status,
            status_url=f"{url}/status",
            result_url=f"{url}/result",
            created_at=record.created_at,
        )

    @routes.post("/v1/explain", responses=error_docs(*EXPLAIN_ERRORS))
    async def explain(body: InferenceRequest, caller: CallerOfRequest) -> Explanation:
        """What would be done with a request, to the last size and kernel; nothing is made."""
        return await service.explain(body, caller)

    return routes
