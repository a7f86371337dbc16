"""Request bodies, from the socket to the route.

`limits` reads every body, whatever its format, and holds memory for its bytes until the request is answered. Then the
reader of the route's format parses what was read, and holds memory for what it makes of it: `json_bodies` is the one
for JSON, `multipart` parses forms of several parts, and `inference_bodies` takes a request in either. A reader for
another format is a module next to them: a BodyReader, and a BodyRoute that names it.
"""

from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serve_app.api.error_shapes import CONTRACT, ErrorShape


class BodyReader(Request):
    """A request whose body is read in one format."""

    @abstractmethod
    async def prepare(self) -> None:
        """Do what may raise a ServiceError, before FastAPI reads the body.

        FastAPI would report an error that is raised while it reads a body as a body that it cannot parse.
        """


class BodyRoute(APIRoute):
    """A route that parses its body with `reader`, and whose errors have the shape `error_shape`."""

    reader: ClassVar[type[BodyReader]]
    error_shape: ClassVar[ErrorShape] = CONTRACT

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_with_reader(request: Request) -> Response:
            reader = self.reader(request.scope, request.receive)
            await reader.prepare()
            return await handle(reader)

        return handle_with_reader
