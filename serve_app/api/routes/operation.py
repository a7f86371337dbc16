"""The route that tells operators, and tenants as far as it concerns them, how the service is doing."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from serve_app.api.caller import KEYS_IN_DOCS, base_url_of, reader_of
from serve_app.api.error_answers import error_docs
from serve_app.errors import StoreUnavailable
from serve_app.intake.service import Service
from serve_app.intake.tenants import Caller
from serve_app.schemas.operation import OperationStatus


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["operation"], dependencies=KEYS_IN_DOCS)

    @routes.get("/v1/operation", responses=error_docs(StoreUnavailable))
    async def operation(request: Request, caller: Annotated[Caller, Depends(reader_of(service))]) -> OperationStatus:
        """Models, running and starting editors, queues, and requests that failed.

        A tenant's key sees the images and failures of its tenant, an operator's those of all. Without API keys,
        failures are shown only to those who see the history.
        """
        return await service.operation.status(caller, base_url_of(service.config, request))

    return routes
