"""Calls to the service: where it is, the key, time limits, and trying again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel

from edits_client._async.clock import sleep
from edits_client.answers import Incomplete, answer_as, json_of, raise_for_error
from edits_client.errors import ApiError, ConnectionFailed
from edits_client.retries import RETRIED_STATUSES, Retries, retry_after_s

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

logger = logging.getLogger("edits_client")


class AsyncTransport:
    """Makes calls and repeats those that may succeed later. See `edits_client.retries` for why every call may be."""

    def __init__(self, http: httpx2.AsyncClient, retries: Retries) -> None:
        self.http = http
        self._retries = retries

    async def get(self, kind: type[M], path: str, params: Mapping[str, Any] | None = None) -> M:
        return answer_as(kind, await self.call("GET", path, json_of, params=params))

    async def delete(self, kind: type[M], path: str, params: Mapping[str, Any] | None = None) -> M:
        return answer_as(kind, await self.call("DELETE", path, json_of, params=params))

    async def post(self, kind: type[M], path: str, body: Any, headers: Mapping[str, str] | None = None) -> M:
        """`body` is sent as JSON, or as it is if it is bytes."""
        if isinstance(body, bytes):
            content = {"content": body, "headers": {"Content-Type": "application/octet-stream"}}
            return answer_as(kind, await self.call("POST", path, json_of, **content))
        return answer_as(kind, await self.call("POST", path, json_of, json=body, headers=headers))

    async def call(self, method: str, path: str, read: Callable[[httpx2.Response], T], **options: Any) -> T:
        """What `read` makes of the answer. Raises ApiError, or ConnectionFailed when there is no time for more tries.

        `read` raises Incomplete for an answer that broke off.
        """
        started = time.monotonic()
        tries = 0
        while True:
            tries += 1
            wait_s = 0.0
            try:
                response = await self.http.request(method, path, **options)
                wait_s = retry_after_s(response.headers)
                raise_for_error(response)
                return read(response)
            except ApiError as error:
                if error.status not in RETRIED_STATUSES:
                    raise
                failure: Exception = error
            except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
                raise ConnectionFailed(self._text(error)) from error
            except (httpx2.TransportError, httpx2.DecodingError, Incomplete) as error:
                failure = error
            pause = self._retries.pause(tries, time.monotonic() - started, wait_s)
            if pause is None:
                raise self._given_up(failure, tries) from failure
            if tries == 1:
                logger.warning("%s; trying again for up to %g s", self._text(failure), self._retries.for_s)
            await sleep(pause)

    def _given_up(self, failure: Exception, tries: int) -> Exception:
        if isinstance(failure, ApiError):
            return failure
        return ConnectionFailed(f"{self._text(failure)} (after {'1 try' if tries == 1 else f'{tries} tries'})")

    def _text(self, failure: Exception) -> str:
        """What is wrong, in a sentence that names the service."""
        if isinstance(failure, (ApiError, Incomplete)):
            return str(failure)
        return f"no complete answer from {self.http.base_url}: {str(failure) or type(failure).__name__}"
