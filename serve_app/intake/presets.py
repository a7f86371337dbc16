"""Presets: named sets of a request's fields, from the ingress' `user_config`.

A preset is kept as the request that it stands for, with one empty prompt, so that its values follow the request's own
rules. What a request does not send is taken from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from serve_app.config import MalformedPreset, Preset
from serve_app.config.section import faults_of
from serve_app.errors import ConfigRefused, ErrorDescription, PresetBroken, PresetNotFound, describe
from serve_app.intake.tenants import Caller
from serve_app.models.registry import MODELS
from serve_app.schemas.requests import InferenceRequest, Prompt

# Where a preset's fields belong in a request.
REQUEST_FIELDS = ("model", "loras", "trigger_word", "profile", "output_format", "quality")
PROMPT_FIELDS = ("sample_steps", "guidance_scale", "neg", "size")
# A prompt that sends one of these has its own size.
SIZE_FIELDS = frozenset(("size", "width", "height"))


@dataclass
class KnownPreset:
    """A preset of the `user_config`.

    `template` is the request that it stands for; None if it cannot be read as one. `problem` says why it cannot be
    used, as far as that is known. `tenants` are those that may use it; empty for all, None for operators only.
    """

    name: str
    tenants: tuple[str, ...] | None
    template: InferenceRequest | None
    problem: ErrorDescription | None = None

    def is_visible_to(self, caller: Caller) -> bool:
        """Whether the caller may use it. An operator may use all."""
        if caller.is_operator or self.tenants == ():
            return True
        return self.tenants is not None and caller.tenant in self.tenants


class Presets:
    """The presets of this ingress. They may be replaced at any time, and hold from the next request on."""

    def __init__(self) -> None:
        self._known: dict[str, KnownPreset] = {}

    def replace(self, presets: Mapping[str, Preset], malformed: Mapping[str, MalformedPreset] = {}) -> None:
        """Use these presets from now on."""
        known = {name: _known(name, preset) for name, preset in presets.items()}
        for name, unread in malformed.items():
            known[name] = KnownPreset(name, unread.tenants, None, _refusal(unread.reason))
        self._known = known

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
            raise broken(known.name, known.problem or _refusal("it cannot be used"))
        return fill(request, known.template)


def broken(name: str, problem: ErrorDescription) -> PresetBroken:
    """The error for a request that names a broken preset. Its details are those of the problem, and its code."""
    details = {**problem.details, "preset": name, "code": problem.code}
    return PresetBroken(f"the preset {name!r} cannot be used: {problem.message}", details)


def fill(request: InferenceRequest, template: InferenceRequest) -> InferenceRequest:
    """The request with the template's fields that it does not send. Those that the template does not set stay."""
    [empty] = template.prompts
    missing = _unsent(request, template, REQUEST_FIELDS)
    prompts = [prompt.model_copy(update=_missing_of_prompt(prompt, empty)) for prompt in request.prompts]
    return request.model_copy(update=missing | {"prompts": prompts})


def _missing_of_prompt(prompt: Prompt, template: Prompt) -> dict[str, Any]:
    missing = _unsent(prompt, template, PROMPT_FIELDS)
    if prompt.model_fields_set & SIZE_FIELDS:
        missing.pop("size", None)
    return missing


def _unsent(
    sent: InferenceRequest | Prompt, template: InferenceRequest | Prompt, names: tuple[str, ...]
) -> dict[str, Any]:
    # Null counts as not sent: see `schemas.text.Nullable`.
    wanted = template.model_fields_set - sent.model_fields_set
    return {name: getattr(template, name) for name in names if name in wanted}


def _known(name: str, preset: Preset) -> KnownPreset:
    if name in MODELS:
        reason = f"{name} is the id of a model; give the preset another name"
        return KnownPreset(name, preset.tenants, None, _refusal(reason))
    try:
        return KnownPreset(name, preset.tenants, template_of(preset))
    except ValidationError as error:
        return KnownPreset(name, preset.tenants, None, _refusal(faults_of(error).replace("prompts.0.", "")))


def template_of(preset: Preset) -> InferenceRequest:
    """The request that the preset stands for, with one empty prompt. Raises ValidationError."""
    values = preset.model_dump(exclude={"tenants"})
    prompt = {"prompt": ""} | {name: values.pop(name) for name in PROMPT_FIELDS}
    return InferenceRequest.model_validate(values | {"prompts": [prompt]})


def _refusal(reason: str) -> ErrorDescription:
    return describe(ConfigRefused(reason))
