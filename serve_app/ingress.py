"""The HTTP application around a service."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from serve_app.errors import ServiceError
from serve_app.middleware import BodyLimit, DropRayHeaders, NameRequest
from serve_app.room import HoldBody
from serve_app.routes import inference, models, operation, requests
from serve_app.service import Service
from serve_app.wire import answer_error, answer_shape_error


def _tenant_of(service: Service) -> Callable[[Scope], str]:
    def tenant_of(scope: Scope) -> str:
        headers = Headers(scope=scope)
        return service.tenant(headers.get("authorization"), headers.get("x-api-key"))

    return tenant_of


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
    for routes in (operation, models, inference, requests):
        app.include_router(routes.router(service))
    app.add_exception_handler(RequestValidationError, answer_shape_error)
    app.add_exception_handler(ServiceError, answer_error)
    app.add_exception_handler(Exception, answer_error)
    app.add_middleware(BodyLimit, max_bytes=service.config.max_body_bytes)
    app.add_middleware(
        HoldBody, memory=service.bodies, max_bytes=service.config.max_body_bytes, tenant_of=_tenant_of(service)
    )
    app.add_middleware(DropRayHeaders)
    app.add_middleware(NameRequest)
    app.add_middleware(
        CORSMiddleware, allow_origins=service.config.cors_origins, allow_methods=["*"], allow_headers=["*"]
    )
    return app
