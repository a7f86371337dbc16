"""Dependencies of most routes: who calls, and the address under which the caller reaches the service."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, APIKeyQuery, HTTPBearer

from serve_app.api.access import is_from_this_machine
from serve_app.config import AppConfig
from serve_app.intake.answers.bodies import Links
from serve_app.intake.service import Service
from serve_app.intake.signed_urls import PARAMETER
from serve_app.intake.tenants import Caller

# They show in the interactive docs how a key is sent. The config decides whether one is needed.
KEYS_IN_DOCS = [
    Depends(HTTPBearer(auto_error=False, description="An API key, where the service has them.")),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key in its own header.")),
]
# The other way to an image.
TOKEN_IN_DOCS = [
    Depends(
        APIKeyQuery(
            name=PARAMETER,
            scheme_name="ImageToken",
            auto_error=False,
            description="The token in the URLs of images in answers, instead of a key.",
        )
    )
]


def caller_of(request: Request) -> Caller:
    """A dependency: who calls. The middleware `serve_app.api.access.Authenticate` has found out."""
    caller: Caller = request.state.caller
    return caller


def reader_of(service: Service) -> Callable[[Request], Caller]:
    """A dependency: who calls, and whether it sees the history although it has no key."""

    def reader(request: Request) -> Caller:
        caller = caller_of(request)
        if service.config.history_without_keys and is_from_this_machine(request.headers):
            return replace(caller, sees_history=True)
        return caller

    return reader


CallerOfRequest = Annotated[Caller, Depends(caller_of)]


def base_url_of(config: AppConfig, request: Request) -> str:
    """What the URLs in an answer start with: the config's `base_url`, or the address that the client used."""
    return (config.base_url or str(request.base_url)).rstrip("/")


def links_of(service: Service) -> Callable[[Request], Links]:
    """A dependency: how the answer to a request names files.

    URLs start with the config's `base_url`, or with the address that the client used.
    """

    config = service.config

    def links(request: Request) -> Links:
        return Links.of(config, base_url_of(config, request), service.signed_urls)

    return links
