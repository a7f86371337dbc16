"""Who calls, and under which address: what most routes ask first."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from serve_app.intake.keys import Caller
from serve_app.intake.service import Service

# They tell the interactive docs what a key looks like; whether one is needed is the config's business.
KEYS_IN_DOCS = [
    Depends(HTTPBearer(auto_error=False, description="An API key, where the service has them.")),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, in a header of its own.")),
]


def caller_of(request: Request) -> Caller:
    """A dependency: who calls, as `serve_app.api.access` found out before the route was reached."""
    caller: Caller = request.state.caller
    return caller


CallerOfRequest = Annotated[Caller, Depends(caller_of)]


def base_url_of(service: Service) -> Callable[[Request], str]:
    """A dependency: what URLs in answers start with, without a slash at the end."""

    def base_url(request: Request) -> str:
        return (service.config.base_url or str(request.base_url)).rstrip("/")

    return base_url
