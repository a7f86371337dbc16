"""Routes of the playground: the page at `/` and the files that it loads, all of them from `serve_app/web`.

The page holds no data, so it needs no key; what it asks the API for does, where the service has keys. Its URLs are
relative, so they work under every host name and path prefix.
"""

from importlib.resources import files
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(str(files("serve_app") / "web"))
PAGE, PREFIX = "index.html", "/web/"
# A system's own table of media types may say otherwise, and browsers run no script of another type.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# None of these needs a key.
PATHS = frozenset(
    {"/", *(PREFIX + path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())}
)
HEADERS = {
    # A browser loads and calls nothing but this service, and shows the page in no other page's frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    # A browser keeps the files, and asks each time whether they have changed.
    "Cache-Control": "private, no-cache",
}


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    web_files = StaticFiles(directory=FOLDER)

    async def answer(name: str, request: Request) -> Response:
        response = await web_files.get_response(name, request.scope)
        response.headers.update(HEADERS)
        media_type = MEDIA_TYPES.get(PurePosixPath(name).suffix)
        if media_type and response.status_code == 200:
            response.headers["Content-Type"] = media_type
        return response

    @routes.get("/")
    async def page(request: Request) -> Response:
        return await answer(PAGE, request)

    @routes.get(PREFIX + "{name:path}")
    async def file(name: str, request: Request) -> Response:
        return await answer(name, request)

    return routes
