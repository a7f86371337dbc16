"""Calls of OpenAI's images API: each becomes a request, or joins the one that it repeats, and waits for its end.

OpenAI's clients repeat a call by themselves after a lost connection and after errors that may pass, and say so in a
header. A repeat joins the request that the call has made, on any ingress: see `jobs.waiting_clients`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from serve_app.concurrency import background
from serve_app.errors import (
    InvalidParameter,
    ModelNotFound,
    NoAnswer,
    RequestError,
    StoreFailed,
    StoreUnavailable,
    describe,
)
from serve_app.intake.admission.parts import Parts
from serve_app.intake.answers.queries import Queries
from serve_app.intake.openai.images import Target, to_request
from serve_app.intake.presets import Presets
from serve_app.intake.submission import Submissions
from serve_app.intake.tenants import Caller
from serve_app.jobs.records import RequestRecord, WaitingClient
from serve_app.jobs.store import JobStore
from serve_app.models.registry import MODELS
from serve_app.schemas.openai import ImagesCall
from serve_app.schemas.requests import InferenceRequest
from serve_app.telemetry.metrics import NO_MODEL, REPEATED, SUBMISSIONS, Meter

logger = logging.getLogger(__name__)

# How long the end of a request is waited for (s). OpenAI's clients give up after 600 s without an answer.
MAX_WAIT_S = 590.0


@dataclass(frozen=True)
class RepeatableCall:
    """A call by a client that repeats calls by itself. `sha256` is the same for all repeats; the first is none."""

    sha256: str
    is_repeat: bool


@dataclass(frozen=True)
class Call:
    """A call as it came: its route, its fields, and the files that they name."""

    route: str
    fields: ImagesCall
    parts: Parts
    repeatable: RepeatableCall | None


class ClientGone(Exception):
    """The client has closed its connection: nobody reads an answer."""


class OpenAICalls:
    """Makes calls into requests, and lets their clients wait."""

    def __init__(
        self,
        submissions: Submissions,
        presets: Presets,
        queries: Queries,
        store: JobStore,
        models: Sequence[str],
        meter: Meter,
    ) -> None:
        """`models` are the ids of the served models."""
        self._presets = presets
        self._submissions = submissions
        self._queries = queries
        self._store = store
        self._models = list(models)
        self._meter = meter

    async def submit(self, call: Call, caller: Caller, base_url: str) -> tuple[RequestRecord, WaitingClient]:
        """The request that a call makes, or joins if it is a repeat, and the client's place in it.

        Raises what `Submissions.submit` raises. If it is cancelled, the client has hung up.
        """
        submitting = asyncio.ensure_future(self._submit(call, caller, base_url))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            await background.join(submitting)
            if not submitting.cancelled() and submitting.exception() is None:
                await self.leave(submitting.result()[1], hung_up=True)
            raise

    async def _submit(self, call: Call, caller: Caller, base_url: str) -> tuple[RequestRecord, WaitingClient]:
        repeatable = call.repeatable
        if repeatable is not None and repeatable.is_repeat:
            client = await self._store.clients.attach(caller.tenant, repeatable.sha256)
            if client is not None:
                record = await self._queries.request(client.request_id, caller)
                self._count(record.model, REPEATED)
                logger.info("request %s: repeat %s of its call joins it", record.id, client.number)
                return record, client
        model = None
        try:
            target = self._target(call.fields, caller)
            model = target.spec.id
            request = to_request(call.fields, call.route, target)
        except RequestError as error:
            # All other refusals are counted where all requests are checked.
            self._count(model, describe(error).code)
            raise
        sha256 = repeatable.sha256 if repeatable is not None else None
        record, _ = await self._submissions.submit(request, caller, base_url, parts=call.parts, call_sha256=sha256)
        return record, WaitingClient(record.id)

    async def ended(self, record: RequestRecord, client: WaitingClient, client_gone: Awaitable[None]) -> RequestRecord:
        """The request once it has ended. Raises NoAnswer if that takes too long, and ClientGone.

        `client_gone` ends when the client has closed its connection.
        """
        try:
            record = await self._ended(record, client_gone)
        except (ClientGone, asyncio.CancelledError):
            # Serve cancels what it runs for a client that is gone; other servers only report it.
            await self.leave(client, hung_up=True)
            raise
        if not record.status.ended:
            await self.leave(client, hung_up=False)
            raise NoAnswer(
                f"request {record.id} has not ended yet and goes on: send the call again, or ask for its result under "
                f"/v1/requests/{record.id}/result"
            )
        return record

    async def _ended(self, record: RequestRecord, client_gone: Awaitable[None]) -> RequestRecord:
        """The request once it has ended, or as it is after MAX_WAIT_S. Raises ClientGone."""
        waiting = asyncio.ensure_future(self._queries.wait_until_ended(record, MAX_WAIT_S))
        gone = asyncio.ensure_future(client_gone)
        try:
            await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientGone
            return waiting.result()
        finally:
            await background.cancel(waiting, gone)

    async def leave(self, client: WaitingClient, *, hung_up: bool) -> None:
        """Record that a client no longer waits for a request that has not ended: see `WaitingClients.leave`."""
        try:
            await background.shielded(self._store.clients.leave(client, hung_up=hung_up))
        except (StoreFailed, StoreUnavailable):
            logger.exception("could not record that a client of request %s is gone", client.request_id)

    def _target(self, call: ImagesCall, caller: Caller) -> Target:
        """What the call's `model` and `preset` mean. Raises ModelNotFound, PresetBroken or InvalidParameter."""
        model = call.model if call.model in self._models else None
        name = call.preset if model is not None or call.model is None else call.model
        if call.preset not in (None, name):
            raise InvalidParameter(
                "model and preset name two different presets: send one of them", {"parameter": "preset"}
            )
        if name is None or self._presets.find(name, caller) is None:
            if model is not None and name is None:
                return Target(MODELS[model])
            raise self._not_found(name, caller)
        # A preset without problems has a template of what it sets.
        empty = InferenceRequest.model_validate({"preset": name, "prompts": [{"prompt": ""}]})
        filled = self._presets.apply(empty, caller)
        sets = filled.model_fields_set | filled.prompts[0].model_fields_set
        return Target(MODELS[model or filled.model], name, model, frozenset(sets))

    def _not_found(self, name: str | None, caller: Caller) -> ModelNotFound:
        wrong = "model is missing" if name is None else f"this service has no model and no preset {name!r}"
        presets = [preset.name for preset in self._presets.visible_to(caller)]
        names = ", ".join([*self._models, *presets])
        return ModelNotFound(f"{wrong}; it has: {names}", {"supported_models": self._models})

    def _count(self, model: str | None, code: str) -> None:
        self._meter.record(SUBMISSIONS, model=model if model in self._models else NO_MODEL, code=code)
