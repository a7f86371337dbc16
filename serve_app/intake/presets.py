"""Presets: named sets of a request's fields, from the ingress' `user_config`.

A preset is kept as the request that it stands for, with one empty prompt, so that its values follow the request's own
rules. What a request does not send is taken from there. Each ingress checks its presets now and then: whether their
files exist and fit.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from serve_app.concurrency.loops import WakeUp, every
from serve_app.config import MalformedPreset, Preset
from serve_app.config.section import faults_of
from serve_app.errors import (
    ConfigRefused,
    ErrorDescription,
    LoraDownloadFailed,
    LoraIncompatible,
    LoraInvalidFile,
    LoraNotFound,
    LoraPathForbidden,
    ModelNotFound,
    PresetBroken,
    PresetNotFound,
    QualityUnavailable,
    RequestError,
    ServiceError,
    SingleLoraOnly,
    TooManyLoras,
    describe,
)
from serve_app.intake.admission.admission import gather_few
from serve_app.intake.tenants import Caller
from serve_app.models.registry import MODELS
from serve_app.schemas.requests import InferenceRequest, Prompt
from serve_app.telemetry.metrics import NO_METER, Loop, Meter

logger = logging.getLogger(__name__)

# Where a preset's fields belong in a request.
REQUEST_FIELDS = ("model", "loras", "trigger_word", "profile", "output_format", "quality", "max_loss")
PROMPT_FIELDS = ("sample_steps", "guidance_scale", "neg", "size")
# A prompt that sends one of these has its own size.
SIZE_FIELDS = frozenset(("size", "width", "height"))
# Errors of a request that are its preset's fault, if the request sends none of these fields.
FAULTS: Mapping[type[RequestError], frozenset[str]] = {
    ModelNotFound: frozenset(("model",)),
    SingleLoraOnly: frozenset(("loras",)),
    TooManyLoras: frozenset(("loras",)),
    LoraPathForbidden: frozenset(("loras",)),
    LoraNotFound: frozenset(("loras",)),
    LoraInvalidFile: frozenset(("loras",)),
    LoraDownloadFailed: frozenset(("loras",)),
    LoraIncompatible: frozenset(("model", "loras")),
    QualityUnavailable: frozenset(("quality",)),
}
# How often presets are checked (s), and how often those that work and have files elsewhere: half a megabyte is read of
# each file.
CHECK_S, REMOTE_CHECK_S = 15.0, 300.0
# How many presets are checked at a time: a server that does not answer delays few others.
CHECKS_AT_ONCE = 4
# How an error of a request begins that is about its first prompt, which a preset does not have.
FIRST_PROMPT = "prompt 0: "

# Makes the checks of a request that do not depend on its prompts. Raises ServiceError.
Check = Callable[[InferenceRequest], Awaitable[None]]


@dataclass
class KnownPreset:
    """A preset of the `user_config`.

    `template` is the request that it stands for; None if it cannot be read as one. `problem` says why it cannot be
    used, as far as that is known. `tenants` are those that may use it; empty for all, None for operators only.
    `check_at` is when it is checked next (s, by the clock of `Presets`).
    """

    name: str
    tenants: tuple[str, ...] | None
    template: InferenceRequest | None
    problem: ErrorDescription | None = None
    check_at: float = 0.0

    @classmethod
    def of(cls, name: str, preset: Preset) -> "KnownPreset":
        """The preset, with a problem if its name or its values break a rule."""
        try:
            if name in MODELS:
                raise ConfigRefused(f"{name} is the id of a model; give the preset another name")
            return cls(name, preset.tenants, template_of(preset))
        except ConfigRefused as error:
            return cls(name, preset.tenants, None, describe(error))

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that it sets, by name; empty if it cannot be read as a request."""
        if self.template is None:
            return {}
        [prompt] = self.template.prompts
        return _set_fields(self.template, REQUEST_FIELDS) | _set_fields(prompt, PROMPT_FIELDS)

    def is_visible_to(self, caller: Caller) -> bool:
        """Whether the caller may use it, and all its LoRAs. An operator may use all."""
        paths = [lora.path for lora in self.template.loras] if self.template else []
        if caller.allowed is not None and not caller.allowed.preset(self.name, paths):
            return False
        if caller.is_operator or self.tenants == ():
            return True
        return self.tenants is not None and caller.tenant in self.tenants


class Presets:
    """The presets of this ingress. They may be replaced at any time, and hold from the next request on.

    `run` checks them until it is cancelled. A preset that was not checked yet counts as usable.
    """

    def __init__(
        self,
        check: Check,
        is_remote: Callable[[str], bool],
        meter: Meter = NO_METER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_remote` says of a LoRA's path whether reading its file needs the network."""
        self._check = check
        self._is_remote = is_remote
        self._meter = meter
        self._clock = clock
        self._wake_up = WakeUp()
        self._known: dict[str, KnownPreset] = {}

    def replace(self, presets: Mapping[str, Preset], malformed: Mapping[str, MalformedPreset] = {}) -> None:
        """Use these presets from now on, and check them soon."""
        known = [KnownPreset.of(name, preset) for name, preset in presets.items()]
        known += [
            KnownPreset(name, unread.tenants, None, describe(ConfigRefused(unread.reason)))
            for name, unread in malformed.items()
        ]
        for preset in known:
            if preset.problem is not None:
                _log(preset.name, preset.problem)
            elif (before := self._known.get(preset.name)) is not None and before.template == preset.template:
                preset.problem = before.problem
        self._known = {preset.name: preset for preset in known}
        self._wake_up.set()

    async def run(self) -> None:
        pause = self._wake_up.pause
        await every(CHECK_S, self.check_due, loop=Loop.PRESETS, meter=self._meter, pause=pause)

    async def check_due(self) -> None:
        """Check the presets whose time has come: whether their files exist and fit."""
        now = self._clock()
        due = [known for known in self._known.values() if known.check_at <= now]
        await gather_few([partial(self._check_one, known) for known in due], CHECKS_AT_ONCE)

    async def _check_one(self, known: KnownPreset) -> None:
        if known.template is None:
            return
        problem = known.problem
        try:
            await self._check(known.template)
            problem = None
        except RequestError as error:
            problem = _without_prompt(describe(error))
        except ServiceError as error:
            # For want of what other requests hold, or of storage: that says nothing about the preset.
            logger.warning("the preset %s was not checked: %s", known.name, error.message)
        except Exception:
            logger.exception("the preset %s was not checked", known.name)
        if problem != known.problem:
            _log(known.name, problem)
        known.problem = problem
        known.check_at = self._clock() + self._pause_of(known.template, problem)

    def _pause_of(self, template: InferenceRequest, problem: ErrorDescription | None) -> float:
        """Until the next check (s). Local files, and those that cannot be used, are looked at in each round."""
        is_remote = any(self._is_remote(lora.path) for lora in template.loras)
        return REMOTE_CHECK_S if is_remote and problem is None else 0.0

    def visible_to(self, caller: Caller) -> list[KnownPreset]:
        """The presets that the caller may use, by name. Some may be broken: see `problem`."""
        return sorted((known for known in self._known.values() if known.is_visible_to(caller)), key=lambda k: k.name)

    def broken(self) -> list[KnownPreset]:
        """All presets that are known to be broken, by name, whoever may use them."""
        return sorted((known for known in self._known.values() if known.problem), key=lambda known: known.name)

    def find(self, name: str, caller: Caller) -> KnownPreset | None:
        """The preset of this name; None if there is none, or if the caller may not use it."""
        known = self._known.get(name)
        return known if known is not None and known.is_visible_to(caller) else None

    def model_of(self, request: InferenceRequest, caller: Caller) -> str:
        """The model that the request is for; empty if neither the request nor a preset names one."""
        if request.model or request.preset is None:
            return request.model
        known = self.find(request.preset, caller)
        return known.template.model if known is not None and known.template is not None else ""

    def apply(self, request: InferenceRequest, caller: Caller) -> InferenceRequest:
        """The request with the fields of its preset that it does not send. Raises PresetNotFound or PresetBroken."""
        if request.preset is None:
            return request
        known = self.find(request.preset, caller)
        if known is None:
            raise PresetNotFound(
                f"there is no preset {request.preset!r}; GET /v1/presets lists them", {"preset": request.preset}
            )
        if known.problem is not None or known.template is None:
            raise error_of(known.name, known.problem or describe(ConfigRefused("it is not a request")))
        return fill(request, known.template)


@contextmanager
def blaming_preset(request: InferenceRequest) -> Iterator[None]:
    """Raise PresetBroken for an error that the request, as it was sent, owes to its preset.

    A file of a preset may have gone since the preset was checked, or before it was.
    """
    try:
        yield
    except RequestError as error:
        sent = next((fields for kind, fields in FAULTS.items() if isinstance(error, kind)), None)
        if request.preset is None or sent is None or request.model_fields_set & sent:
            raise
        raise error_of(request.preset, describe(error)) from error


def error_of(name: str, problem: ErrorDescription) -> PresetBroken:
    """The error for a request that names a broken preset. Its details are those of the problem, and its code."""
    details = {**problem.details, "preset": name, "code": problem.code}
    return PresetBroken(f"the preset {name!r} cannot be used: {problem.message}", details)


def _log(name: str, problem: ErrorDescription | None) -> None:
    if problem is None:
        logger.info("the preset %s can be used again", name)
    else:
        logger.warning("the preset %s is broken: %s", name, problem.message)


def _without_prompt(problem: ErrorDescription) -> ErrorDescription:
    details = {name: value for name, value in problem.details.items() if name != "prompt_index"}
    return replace(problem, message=problem.message.removeprefix(FIRST_PROMPT), details=details)


def fill(request: InferenceRequest, template: InferenceRequest) -> InferenceRequest:
    """The request with the template's fields that it does not send. Those that the template does not set stay."""
    [empty] = template.prompts
    of_request, of_prompt = _set_fields(template, REQUEST_FIELDS), _set_fields(empty, PROMPT_FIELDS)
    prompts = [_filled(prompt, of_prompt) for prompt in request.prompts]
    return request.model_copy(update=_unsent(request, of_request) | {"prompts": prompts})


def _filled(prompt: Prompt, fields: Mapping[str, Any]) -> Prompt:
    missing = _unsent(prompt, fields)
    if not SIZE_FIELDS.isdisjoint(prompt.model_fields_set):
        missing.pop("size", None)
    return prompt.model_copy(update=missing)


def _unsent(sent: InferenceRequest | Prompt, fields: Mapping[str, Any]) -> dict[str, Any]:
    # Null counts as not sent: see `schemas.text.Nullable`.
    return {name: value for name, value in fields.items() if name not in sent.model_fields_set}


def _set_fields(template: InferenceRequest | Prompt, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(template, name) for name in names if name in template.model_fields_set}


def template_of(preset: Preset) -> InferenceRequest:
    """The request that the preset stands for, with one empty prompt. Raises ConfigRefused."""
    values = preset.model_dump(exclude={"tenants"})
    prompt = {"prompt": ""} | {name: values.pop(name) for name in PROMPT_FIELDS}
    try:
        return InferenceRequest.model_validate(values | {"prompts": [prompt]})
    except ValidationError as error:
        raise ConfigRefused(faults_of(error).replace("prompts.0.", "")) from error
