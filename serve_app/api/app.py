"""The HTTP application around a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from serve_app.api.access import PUBLIC_PATHS, Authenticate, CheckHost
from serve_app.api.auditing import AuditOperators
from serve_app.api.bodies.limits import BodyLimit
from serve_app.api.error_answers import answer_faults, answer_http_error
from serve_app.api.middleware import (
    AddRequestId,
    AnswerErrors,
    AnswerHead,
    DropRayHeaders,
    SecurityHeaders,
    TraceRequest,
)
from serve_app.api.openapi import TAGS, Application
from serve_app.api.rate_limits import LIMIT, POLICY, LimitRates
from serve_app.api.routes import (
    calibrations,
    docs,
    images,
    inference,
    models,
    operation,
    playground,
    probes,
    requests,
    sweeps,
    training,
    uploads,
)
from serve_app.intake.service import Service

# Headers of an answer that scripts in a browser may read, in addition to those that every browser permits.
EXPOSED_HEADERS = (
    "Allow",
    "Content-Disposition",
    "ETag",
    "Location",
    LIMIT,
    POLICY,
    "Retry-After",
    "WWW-Authenticate",
    "X-Page",
    "X-Pages",
    "X-Request-ID",
    "X-Step",
    "X-Steps",
)


def create_app(service: Service) -> FastAPI:
    """The whole HTTP application around `service`, which it starts and stops with its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = Application(
        title="Image edits",
        description="Edits images with LoRAs that ostris/ai-toolkit trained for Qwen-Image-Edit.",
        version="1",
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        separate_input_output_schemas=False,
        lifespan=lifespan,
        # The pages that load nothing from another host are in `routes/docs.py`.
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # A redirect would contain the Host header that the client sent.
        redirect_slashes=False,
    )
    groups = (probes, models, inference, uploads, images, requests, sweeps, training, calibrations, operation)
    routers = [docs.router(app.title), *(routes.router(service) for routes in groups)]
    if service.config.playground:
        routers.append(playground.router())
    for router in routers:
        # `include_router` would analyse each route a second time, which takes as long as all the rest.
        app.routes.extend(router.routes)
    app.add_exception_handler(RequestValidationError, answer_faults)
    app.add_exception_handler(HTTPException, answer_http_error)
    _add_middleware(app, service)
    return app


def _add_middleware(app: FastAPI, service: Service) -> None:
    """Add the middleware from the inside out: a request passes the last one first."""
    config = service.config
    app.add_middleware(
        BodyLimit,
        memory=service.resources.body_memory,
        max_bytes=config.max_body_bytes,
        timeout_s=config.body_timeout_s,
    )
    app.add_middleware(AuditOperators)
    app.add_middleware(LimitRates, limits=service.rate_limits)
    public_paths = PUBLIC_PATHS | playground.PATHS if config.playground else PUBLIC_PATHS
    app.add_middleware(
        Authenticate, caller_of=service.keys.caller, signed_urls=service.signed_urls, public_paths=public_paths
    )
    app.add_middleware(CheckHost, allowed_hosts=config.allowed_hosts)
    app.add_middleware(DropRayHeaders)
    app.add_middleware(AnswerErrors)
    app.add_middleware(TraceRequest)
    app.add_middleware(AnswerHead)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=config.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(AddRequestId)
    app.add_middleware(SecurityHeaders)
