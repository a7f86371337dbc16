"""The reader of JSON bodies. Whatever is wrong with a body becomes a documented answer with its reason."""

import json
from typing import Any

from serve_app.api.bodies import BodyReader, BodyRoute

# How many lists, objects and items a body may have: see `count_values`. 10,000 prompts with every field have a
# quarter of that.
MAX_VALUES = 1_000_000
# Parsed JSON also has objects: an empty one takes three bytes of a body and 70 in memory, one with a key takes 200.
BYTES_PER_VALUE = 100
# What `body` returns in place of a body that is not empty.
SOME_BODY = b"{}"


def count_values(body: bytes) -> int:
    """An upper bound for the lists, objects and items in a JSON body, which is not parsed: commas in texts count."""
    return sum(map(body.count, (b"[", b"{", b",")))


class JsonRequest(BodyReader):
    """A request whose body is UTF-8 JSON. `json` raises only JSONDecodeError, which FastAPI answers with 422."""

    async def prepare(self) -> None:
        """Hold memory for the values of the body. Raises Overloaded."""
        self.read(await self.raw())

    async def raw(self) -> bytes:
        """The bytes of the body. Call this once: no reference to them is kept."""
        content = await super().body()
        del self._body
        return content

    def read(self, content: bytes) -> None:
        """Take `content` for the body. Raises Overloaded."""
        self._content = content
        self._some = SOME_BODY if content else b""
        self._values = count_values(content)
        # With more values than that, it is not parsed.
        if 0 < self._values <= MAX_VALUES:
            self.state.memory.take_more(BYTES_PER_VALUE * self._values)

    async def body(self) -> bytes:
        """SOME_BODY, or nothing if the body is empty: FastAPI keeps what this returns until the request is answered."""
        return self._some

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            content, self._content = self._content, b""
            self._json = self._parsed(content)
        return self._json

    def _parsed(self, content: bytes) -> Any:
        if self._values > MAX_VALUES:
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
