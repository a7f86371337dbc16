"""JSON bodies: read so that whatever is wrong with one is a documented answer with its reason."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class JsonRequest(Request):
    """A request whose body is UTF-8 JSON. `json` raises JSONDecodeError alone, which FastAPI answers with 422."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = await self._parsed()
        return self._json

    async def _parsed(self) -> Any:
        try:
            return json.loads(await self.body())
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError as error:
            if encoding := self.headers.get("content-encoding"):
                raise _broken(f"the body is in Content-Encoding {encoding[:20]!r}; send it as it is") from error
            raise _broken("the body is not UTF-8", error.start) from error
        except RecursionError as error:
            raise _broken("it is nested too deep") from error
        except ValueError as error:
            # What Python says to a number of more digits than it converts.
            raise _broken("a number has too many digits") from error


def _broken(reason: str, position: int = 0) -> json.JSONDecodeError:
    return json.JSONDecodeError(reason, "", position)


class JsonRoute(APIRoute):
    """A route that reads its body as JsonRequest does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json
