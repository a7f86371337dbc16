"""The HTTP application around a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from serve_app import schemas
from serve_app.api.access import Authenticate, CheckHost
from serve_app.api.body_limits import BodyLimit
from serve_app.api.error_answers import answer_http_error, answer_shape_error
from serve_app.api.middleware import AnswerErrors, AnswerHead, DropRayHeaders, NameRequest, ProtectAnswers
from serve_app.api.routes import inference, models, operation, requests
from serve_app.intake.service import Service

# What a script in a browser may read of an answer, besides what every browser permits. Serve adds X-Request-ID.
EXPOSED_HEADERS = (
    "Allow",
    "Content-Disposition",
    "ETag",
    "Location",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
)


class Application(FastAPI):
    """FastAPI that keeps the nulls in the examples of `schemas`; its own document drops fields that are null."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for name, schema in document["components"]["schemas"].items():
            if "examples" in schema:
                schema["examples"] = getattr(schemas, name).model_config["json_schema_extra"]["examples"]
        return document


def create_app(service: Service) -> FastAPI:
    """The whole HTTP application around `service`, which it starts and stops with its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = Application(
        title="Image-editing LoRAs",
        description="Edits images with LoRAs that ostris/ai-toolkit trained for Qwen-Image-Edit.",
        version="1",
        lifespan=lifespan,
        # A redirect would name the host that the client named.
        redirect_slashes=False,
    )
    for routes in (operation, models, inference, requests):
        app.include_router(routes.router(service))
    app.add_exception_handler(RequestValidationError, answer_shape_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    _add_middleware(app, service)
    return app


def _add_middleware(app: FastAPI, service: Service) -> None:
    """From the inside out: a request passes these from the last to the first."""
    config = service.config
    app.add_middleware(
        BodyLimit, memory=service.bodies, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s
    )
    app.add_middleware(Authenticate, caller_of=service.caller)
    app.add_middleware(CheckHost, allowed_hosts=config.allowed_hosts)
    app.add_middleware(DropRayHeaders)
    app.add_middleware(AnswerErrors)
    app.add_middleware(NameRequest)
    app.add_middleware(AnswerHead)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=config.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(ProtectAnswers)
