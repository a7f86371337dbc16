"""The HTTP application: routes, and what an error looks like on the wire."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import errors
from serve_app.errors import BodyTooLarge, ErrorDescription, RequestError, describe
from serve_app.jobs import RequestRecord, Standing
from serve_app.schemas import (
    ErrorBody,
    Explanation,
    Health,
    ImageOutput,
    InferenceRequest,
    LoraInfo,
    LoraList,
    ModelInfo,
    ModelList,
    Outputs,
    Progress,
    Readiness,
    RequestResult,
    RequestStatus,
    ShapeErrors,
    Submitted,
)
from serve_app.service import Service
from serve_app.tasks import Status

logger = logging.getLogger(__name__)

# What Ray Serve takes from a request's headers: a client must not steer its routing or time-outs.
RAY_HEADERS = frozenset(
    (b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id", b"serve-multiplexed-model-id")
)
# What a POST can be refused for, in the order of the checks.
SUBMIT_ERRORS = (
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
    errors.BodyTooLarge,
)
DEFAULT_PAGE, MAX_PAGE = 50, 500
MEDIA_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


def create_app(service: Service) -> FastAPI:
    """The whole HTTP application around `service`, which it starts and stops with its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = FastAPI(
        title="Image-editing LoRAs",
        description="Edits pictures with LoRAs that ostris/ai-toolkit trained for Qwen-Image-Edit.",
        version="1",
        lifespan=lifespan,
    )
    _add_routes(app, service)
    app.add_exception_handler(RequestValidationError, _answer_shape_error)
    app.add_exception_handler(errors.ServiceError, _answer_error)
    app.add_exception_handler(Exception, _answer_error)
    app.add_middleware(BodyLimit, max_bytes=service.config.max_body_bytes)
    app.add_middleware(DropRayHeaders)
    app.add_middleware(
        CORSMiddleware, allow_origins=service.config.cors_origins, allow_methods=["*"], allow_headers=["*"]
    )
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    def base_url(request: Request) -> str:
        return (service.config.base_url or str(request.base_url)).rstrip("/")

    @app.get("/health", tags=["operation"])
    async def health() -> Health:
        """Whether this process answers."""
        return Health()

    @app.get("/ready", tags=["operation"], responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        """Whether every configured model has an editor; 503 until then."""
        waiting_for = await service.waiting_for()
        response.status_code = 503 if waiting_for else 200
        return Readiness(ready=not waiting_for, waiting_for=waiting_for)

    @app.get("/v1/models", tags=["models"])
    async def models() -> ModelList:
        """The models that this service edits with."""
        return ModelList(models=[ModelInfo.model_validate(spec, from_attributes=True) for spec in service.models()])

    @app.get("/v1/loras", tags=["models"])
    async def loras(
        search: str = "", cursor: str = "", limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE
    ) -> LoraList:
        """The files under the LoRA root with what their headers say; `search` looks at paths and trigger words."""
        return await service.loras(search, cursor, limit)

    @app.get("/v1/loras/{path:path}", tags=["models"], responses=_error_docs(errors.LoraUnknown))
    async def lora(path: str) -> LoraInfo:
        """One file under the LoRA root."""
        return await service.lora(path)

    submit_errors = _error_docs(*SUBMIT_ERRORS) | {422: {"model": ShapeErrors}}

    @app.post("/v1/inference", tags=["inference"], responses=submit_errors)
    async def submit(body: InferenceRequest, request: Request) -> Submitted:
        """Accept a request. From the answer on it is stored, and reaches an end whatever happens here."""
        record = await service.submit(body)
        url = f"{base_url(request)}/v1/requests/{record.id}"
        return Submitted(
            request_id=record.id,
            status_url=f"{url}/status",
            result_url=f"{url}/result",
            created_at=record.created_at,
        )

    @app.post("/v1/explain", tags=["inference"], responses=submit_errors)
    async def explain(body: InferenceRequest) -> Explanation:
        """What would be done with a request, to the last size and kernel; nothing is made."""
        return await service.explain(body)

    not_found = _error_docs(errors.RequestNotFound)

    @app.get("/v1/requests/{request_id}/status", tags=["inference"], responses=not_found)
    async def status(request_id: str) -> RequestStatus:
        """Where a request stands."""
        return _status(await service.standing(request_id))

    @app.get("/v1/requests/{request_id}/result", tags=["inference"], responses=not_found)
    async def result(request_id: str, request: Request) -> RequestResult:
        """What came of a request; `outputs` is null until it succeeded."""
        return _result(await service.request(request_id), base_url(request))

    @app.get(
        "/v1/requests/{request_id}/images/{n}",
        tags=["inference"],
        response_class=Response,
        responses=_error_docs(errors.RequestNotFound, errors.ImageNotFound)
        | {200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}}},
    )
    async def image(request_id: str, n: int) -> Response:
        """The picture number `n` (from 0, in prompt order), as soon as it is finished."""
        done, data = await service.picture(request_id, n)
        return Response(data, media_type=MEDIA_TYPES[done.format], headers={"ETag": f'"{done.sha256}"'})


def _status(standing: Standing) -> RequestStatus:
    progress = Progress.model_validate(standing, from_attributes=True)
    return RequestStatus.model_validate({**vars(standing), "progress": progress})


def _result(record: RequestRecord, base_url: str) -> RequestResult:
    finished = {
        image.index: ImageOutput(
            format=image.result.format,
            width=image.result.width,
            height=image.result.height,
            file_path=image.result.url,
            seed=image.result.seed,
            url=f"{base_url}/v1/requests/{record.id}/images/{image.index}",
        )
        for image in record.images
        if image.result is not None
    }
    metadata: dict[str, Any] = {"model": record.model, "inference_time": None, "timings": {"prompts": []}}
    if record.finished_at is not None and record.started_at is not None:
        metadata["inference_time"] = round(record.finished_at - record.started_at, 3)
    # One entry a prompt, empty until its picture is there.
    results = [image.result for image in record.images]
    metadata["timings"]["prompts"] = [
        {stage: round(seconds, 4) for stage, seconds in done.timings.items()} if done else {} for done in results
    ]
    metadata["effective"] = [done.effective if done else {} for done in results]
    metadata["runtime"] = [done.runtime if done else {} for done in results]
    metadata |= record.notes
    if record.status in (Status.FAILED, Status.CANCELED):
        metadata["partial"] = [{"image": index} | output.model_dump() for index, output in finished.items()]
    succeeded = record.status == Status.SUCCEEDED
    return RequestResult.model_validate(
        {
            "request_id": record.id,
            "status": record.status,
            "outputs": Outputs(images=list(finished.values())) if succeeded else None,
            "error": record.error,
            "created_at": record.created_at,
            "finished_at": record.finished_at,
            "metadata": metadata,
        }
    )


def _wire(description: ErrorDescription) -> dict[str, Any]:
    facts = {"code": description.code, "message": description.message, "details": description.details}
    return {"detail": {"error": facts}}


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    description = describe(error)
    if description.status >= 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(_wire(description), status_code=description.status)


async def _answer_shape_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Without `input` and `ctx`, which would echo the body and the token in it.
    faults = [{key: fault[key] for key in ("type", "loc", "msg")} for fault in error.errors()]
    return JSONResponse({"detail": faults}, status_code=422)


def _error_docs(*kinds: type[RequestError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these errors, by status, with an example each."""
    docs: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = docs.setdefault(kind.status, {"model": ErrorBody, "content": {"application/json": {"examples": {}}}})
        example = _wire(describe(kind("one sentence that says why")))
        entry["content"]["application/json"]["examples"][kind.code] = {"value": example}
    return docs


class DropRayHeaders:
    """Takes the headers that Ray Serve itself obeys off every request, in any spelling.

    Nothing behind this sees them. Serve's proxy, in front of it, has by then read them for this one HTTP
    request; jobs are dispatched outside of any request, so none of it reaches an edit.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kept = [(k, v) for k, v in scope["headers"] if k.lower().replace(b"_", b"-") not in RAY_HEADERS]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses a body of more than `max_bytes` with 413, by its announced length or as it comes in.

    The body is read here, whole: every route that takes one parses it whole anyway, and a refusal from
    within a route's own reading would come out as a broken body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        body = None if announced.isdigit() and int(announced) > self._max_bytes else await self._read(receive)
        if body is None:
            error = BodyTooLarge(f"the body is larger than {self._max_bytes} bytes; send large images as URLs")
            await JSONResponse(_wire(describe(error)), status_code=error.status)(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytearray | None:
        """The body, None if it is too large or its sender went away."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_bytes or message["type"] == "http.disconnect":
                return None
            if not message.get("more_body", False):
                return body
