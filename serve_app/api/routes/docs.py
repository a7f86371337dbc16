"""Routes of the interactive documentation. Its files come with the service, so that it needs no other host.

URLs in the pages are relative, so they work under every host name and path prefix.
"""

from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from fastapi.responses import FileResponse, HTMLResponse, Response

REDOC = "redoc.standalone.js"
# Files of Swagger UI and ReDoc that the package fastapi-offline ships: their media types by name.
FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    REDOC: "text/javascript",
    "favicon.png": "image/png",
}
# ReDoc loads a logo of its maker from another host, and has no option against it. It shows no logo if this is no image.
REDOC_LOGO, NO_IMAGE = b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"data:,"
OAUTH2_REDIRECT = "/docs/oauth2-redirect"
# Everything here, and the document that the pages show. None of it needs a key.
PATHS = frozenset({"/docs", OAUTH2_REDIRECT, "/redoc", "/openapi.json", *(f"/docs/{name}" for name in FILES)})
# A browser loads nothing from another host, whatever the scripts ask for.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'"
}
# The files change only with the service's version.
FILE_HEADERS = {"Cache-Control": "private, max-age=3600"}


def router(title: str) -> APIRouter:
    """The pages for the OpenAPI document of the application `title`."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def swagger_ui() -> HTMLResponse:
        return _page(
            get_swagger_ui_html(
                openapi_url="openapi.json",
                title=title,
                swagger_js_url="docs/swagger-ui-bundle.js",
                swagger_css_url="docs/swagger-ui.css",
                swagger_favicon_url="docs/favicon.png",
                # Without this, the page would ask swagger.io whether the document is valid.
                swagger_ui_parameters={"validatorUrl": None},
            )
        )

    @routes.get("/redoc")
    async def redoc() -> HTMLResponse:
        return _page(
            get_redoc_html(
                openapi_url="openapi.json",
                title=title,
                redoc_js_url=f"docs/{REDOC}",
                redoc_favicon_url="docs/favicon.png",
                with_google_fonts=False,
            )
        )

    @routes.get(OAUTH2_REDIRECT)
    async def oauth2_redirect() -> HTMLResponse:
        return _page(get_swagger_ui_oauth2_redirect_html())

    @routes.get(f"/docs/{REDOC}")
    def redoc_script() -> Response:
        return Response(_redoc_script(), media_type=FILES[REDOC], headers=FILE_HEADERS)

    for name in FILES.keys() - {REDOC}:
        routes.add_api_route(f"/docs/{name}", _file_route(_path(name), FILES[name]), methods=["GET"])
    return routes


def _path(name: str) -> str:
    return str(files("fastapi_offline") / "static" / name)


@cache
def _redoc_script() -> bytes:
    """ReDoc without its maker's logo. Blocks."""
    return Path(_path(REDOC)).read_bytes().replace(REDOC_LOGO, NO_IMAGE)


def _page(page: HTMLResponse) -> HTMLResponse:
    page.headers.update(PAGE_HEADERS)
    return page


def _file_route(path: str, media_type: str) -> Callable[[], Awaitable[FileResponse]]:
    async def send_file() -> FileResponse:
        return FileResponse(path, media_type=media_type, headers=FILE_HEADERS)

    return send_file
