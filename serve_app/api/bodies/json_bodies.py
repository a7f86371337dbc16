"""The reader of JSON bodies. Whatever is wrong with a body becomes a documented answer with its reason."""

import json
from typing import Any

from fastapi import Request

from serve_app.api.bodies import BodyRoute
from serve_app.concurrency.budget import Hold
from serve_app.schemas.requests import InferenceRequest

# How many lists, objects and items a body may have: see `count_values`. 10,000 prompts with every field have a
# quarter of that.
MAX_VALUES = 1_000_000
# Parsed JSON also has objects: an empty one takes three bytes of a body and 70 in memory, one with a key takes 200.
BYTES_PER_VALUE = 100
# What `body` returns in place of a body that is not empty.
SOME_BODY = b"{}"


def count_values(body: bytes) -> int:
    """At most how many lists, objects and items a JSON body has. It is not parsed: commas in texts count as well."""
    return sum(map(body.count, (b"[", b"{", b",")))


class JsonRequest(Request):
    """A request whose body is UTF-8 JSON. `json` raises only JSONDecodeError, which FastAPI answers with 422."""

    async def body(self) -> bytes:
        """SOME_BODY, or nothing if the body is empty: FastAPI keeps what this returns until the request is answered."""
        if not hasattr(self, "_content"):
            self._content = await super().body()
            self._some = SOME_BODY if self._content else b""
            del self._body
        return self._some

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            await self.body()
            content, self._content = self._content, b""
            self._json = self._parsed(content)
        return self._json

    def _parsed(self, content: bytes) -> Any:
        if self.state.values > MAX_VALUES:
            raise _broken(f"it has more than {MAX_VALUES} values, counted by its brackets and commas")
        try:
            return json.loads(content)
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError as error:
            if encoding := self.headers.get("content-encoding"):
                raise _broken(f"the body is in Content-Encoding {encoding[:20]!r}; send it as it is") from error
            raise _broken("the body is not UTF-8", error.start) from error
        except RecursionError as error:
            raise _broken("it is nested too deep") from error
        except ValueError as error:
            # Python does not convert numbers with too many digits.
            raise _broken("a number has too many digits") from error


def _broken(reason: str, position: int = 0) -> json.JSONDecodeError:
    return json.JSONDecodeError(reason, "", position)


class JsonRoute(BodyRoute):
    """A route that takes a JSON body."""

    reader = JsonRequest


async def release(request: Request, body: InferenceRequest) -> None:
    """Free the parsed body of a request that is answered much later. `body` is empty after that.

    JsonRequest has dropped the bytes already.
    """
    body.prompts.clear()
    (body.model_extra or {}).clear()
    parsed = await request.json()
    if isinstance(parsed, dict):
        parsed.clear()
    hold: Hold = request.state.body
    hold.shrink_to(0)
