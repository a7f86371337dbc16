"""Request bodies, from the socket to the route.

`limits` reads every body, whatever its format, and holds memory for it until the request is answered. Then the reader
of the route's format parses what was read: `json_bodies` is the one for JSON. A reader for another format, such as
multipart, is a module next to it: a subclass of starlette's Request, and a BodyRoute that names it.
"""

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serve_app.api.error_shapes import CONTRACT, ErrorShape


class BodyRoute(APIRoute):
    """A route that parses its body with `reader`, and whose errors have the shape `error_shape`."""

    reader: ClassVar[type[Request]]
    error_shape: ClassVar[ErrorShape] = CONTRACT

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_with_reader(request: Request) -> Response:
            return await handle(self.reader(request.scope, request.receive))

        return handle_with_reader
