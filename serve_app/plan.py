"""From a request to plans: the checks of the contract in its order, and the effective value of everything.

Pure: no input or output, no torch. What needs a disk or the network is done by the caller in between.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from serve_app.config import AppConfig
from serve_app.errors import (
    ControlImageRequired,
    InvalidParameter,
    LoraFileRequired,
    ModelNotFound,
    MoeFormatNotSupported,
    SingleLoraOnly,
    TooManyControlImages,
    TooManyLoras,
)
from serve_app.geometry import snap
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas import InferenceRequest, Prompt
from serve_app.tasks import AdapterUse, EditPlan

T = TypeVar("T")

DEFAULT_SEED = 42
TRIGGER = "[trigger]"


def find_model(request: InferenceRequest, config: AppConfig) -> ModelSpec:
    """The row of the request's model. Raises ModelNotFound unless the config serves it."""
    supported = [model.id for model in config.models]
    if request.model not in supported:
        raise ModelNotFound(
            f"there is no model {request.model!r} here; there is: {', '.join(supported)}",
            {"supported_models": supported},
        )
    return MODELS[request.model]


def check_loras(request: InferenceRequest, spec: ModelSpec, config: AppConfig) -> None:
    """Raise LoraFileRequired, MoeFormatNotSupported, SingleLoraOnly or TooManyLoras."""
    paths = [lora.path for lora in request.loras]
    if not paths and config.require_lora:
        raise LoraFileRequired("loras is empty; this service needs at least one LoRA a request")
    if any(lora.transformer for lora in request.loras) and not spec.two_transformers:
        raise MoeFormatNotSupported(
            f"{spec.id} has one transformer; leave out loras[].transformer",
            {"loras": [lora.model_dump() for lora in request.loras]},
        )
    limit = config.max_loras_per_request
    if len(paths) > limit:
        details = {"loras": paths, "max": limit}
        if limit == 1:
            raise SingleLoraOnly(f"{len(paths)} LoRAs were sent; this service takes one a request", details)
        raise TooManyLoras(f"{len(paths)} LoRAs were sent; this service takes at most {limit} a request", details)


def check_control_images(request: InferenceRequest, spec: ModelSpec) -> None:
    """Raise ControlImageRequired or TooManyControlImages, the first over all prompts."""
    if not spec.requires_control_image:
        return
    for index, prompt in enumerate(request.prompts):
        if not prompt.control_images:
            raise ControlImageRequired(
                f"prompt {index} has no control image, and {spec.id} edits one: set ctrl_img",
                {"model": spec.id, "prompt_index": index},
            )
    for index, prompt in enumerate(request.prompts):
        found = len(prompt.control_images)
        if found > spec.max_control_images:
            raise TooManyControlImages(
                f"prompt {index} has {found} control images; {spec.id} takes {spec.max_control_images}",
                {"prompt_index": index, "max": spec.max_control_images},
            )


def check_parameters(request: InferenceRequest, spec: ModelSpec, config: AppConfig) -> None:
    """Raise InvalidParameter for a value that is well formed and still cannot be served."""
    for index, prompt in enumerate(request.prompts):
        if prompt.resolution == "High":
            raise InvalidParameter(
                f"prompt {index}: {spec.id} has no resolution 'High'; set width and height",
                {"prompt_index": index, "parameter": "resolution"},
            )
        for name in ("prompt", "neg"):
            length = len(getattr(prompt, name) or "")
            if length > config.max_prompt_chars:
                raise InvalidParameter(
                    f"prompt {index}: {name} has {length} characters, at most {config.max_prompt_chars} are accepted",
                    {"prompt_index": index, "parameter": name},
                )


def plan_edits(
    request: InferenceRequest,
    spec: ModelSpec,
    config: AppConfig,
    control_images: Mapping[str, str],
    adapters: Sequence[AdapterUse],
    draw_seed: Callable[[], int] = lambda: secrets.randbelow(2**32),
) -> list[EditPlan]:
    """One plan a prompt, every value effective. `control_images` maps a client's image string to its sha256."""
    profile = request.profile or config.preview_profile

    def plan(index: int, prompt: Prompt) -> EditPlan:
        seed = DEFAULT_SEED + index if prompt.seed is None else prompt.seed
        return EditPlan(
            model=spec.id,
            profile=profile,
            prompt=fill_trigger(prompt, request.trigger_word),
            negative_prompt=prompt.neg or "",
            width=snap(_default(prompt.width, spec.default_width), spec.resolution_divisor),
            height=snap(_default(prompt.height, spec.default_height), spec.resolution_divisor),
            steps=_default(prompt.sample_steps, spec.default_steps),
            guidance_scale=_default(prompt.guidance_scale, spec.default_guidance_scale),
            seed=draw_seed() if seed == -1 else seed,
            output_format=request.output_format,
            control_images=tuple(control_images[image] for image in prompt.control_images),
            adapters=tuple(adapters),
        )

    return [plan(index, prompt) for index, prompt in enumerate(request.prompts)]


def fill_trigger(prompt: Prompt, trigger_word: str | None) -> str:
    """The prompt with `[trigger]` replaced; a prompt's own word wins unless it is empty. No word: as it is."""
    word = prompt.trigger_word or trigger_word
    return prompt.prompt.replace(TRIGGER, word) if word else prompt.prompt


def _default(value: T | None, default: T) -> T:
    return default if value is None else value
