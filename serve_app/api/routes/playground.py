"""Routes of the playground: the page at `/` and the files that it loads, all of them from `serve_app/web`.

The page holds no data, so it needs no key; what it asks the API for does, where the service has keys. Its URLs are
relative, so they work under every host name and path prefix.
"""

import gzip
import re
from functools import lru_cache
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
# What is worth compressing: the page is a quarter as large then.
TEXTS = frozenset({".css", ".html", ".js", ".svg"})
# With a quality above 0.
NAMED_GZIP = re.compile(r"gzip;q=(1|1\.0+|0\.0*[1-9]\d*)")
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
    # Texts are sent in gzip to those that accept it.
    "Vary": "Accept-Encoding",
}


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    web_files = StaticFiles(directory=FOLDER)

    async def answer(name: str, request: Request) -> Response:
        response = await web_files.get_response(name, request.scope)
        response.headers.update(HEADERS)
        suffix = PurePosixPath(name).suffix
        media_type = MEDIA_TYPES.get(suffix)
        if media_type and response.status_code == 200:
            response.headers["Content-Type"] = media_type
        if response.status_code == 200 and suffix in TEXTS and accepts_gzip(request):
            return in_gzip(response, compressed(FOLDER / name, response.headers["ETag"]))
        return response

    @routes.get("/")
    async def page(request: Request) -> Response:
        return await answer(PAGE, request)

    @routes.get(PREFIX + "{name:path}")
    async def file(name: str, request: Request) -> Response:
        return await answer(name, request)

    return routes


def accepts_gzip(request: Request) -> bool:
    codings = request.headers.get("Accept-Encoding", "").replace(" ", "").split(",")
    return any(coding == "gzip" or NAMED_GZIP.fullmatch(coding) for coding in codings)


@lru_cache(256)
def compressed(file: Path, etag: str) -> bytes:
    """The file in gzip. `etag` changes with the file."""
    return gzip.compress(file.read_bytes(), mtime=0)


def in_gzip(response: Response, data: bytes) -> Response:
    """The answer with `data` in place of the file. Its ETag is weak: the bytes are others."""
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    coding = {"etag": f"W/{response.headers['ETag']}", "content-encoding": "gzip"}
    return Response(data, headers=headers | coding)
