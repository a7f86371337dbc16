"""From a request to plans: the checks of the contract in its order, and the effective value of everything.

Pure: no input or output, no torch. What needs a disk or the network is done by the caller in between.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from serve_app.config import AUTO, AppConfig, ModelConfig
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
from serve_app.images import ControlImage
from serve_app.models.profile import PROFILES, Profile, profile_of_trainer
from serve_app.models.recipe import SAMPLERS
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas import InferenceRequest, Prompt
from serve_app.tasks import AdapterUse, EditPlan, SamplerName

T = TypeVar("T")

# How much of what somebody sent by mistake is told.
MAX_NAMES, MAX_NAME = 20, 60

# How far the aspect of a result may be from its control image's before that is told. Flooring the sides to a multiple
# of 32 alone seldom changes it by as much.
MAX_STRETCH = 1.02
# What another aspect does, by the model's family: an edit model gets its control image resized to the result's size, an
# edit-plus model gets each in its own shape (docs/parity.md, rows 4 and 5).
STRETCHES = {
    "edit": "the control image is stretched to the result's shape before it is edited",
    "edit_plus": "the model sees the control image in its own shape, and what it shows may come out stretched or cut",
}

DEFAULT_SEED = 42
SAMPLER_NAMES: dict[str, SamplerName] = {name: name for name in SAMPLERS}
TRIGGER = "[trigger]"
# Where the text encoder puts pictures: one in a prompt would ask for a picture that is not there.
RESERVED_TOKENS = ("<|image_pad|>", "<|video_pad|>")


def find_model(request: InferenceRequest, config: AppConfig) -> ModelSpec:
    """The row of the request's model. Raises ModelNotFound unless the config serves it."""
    supported = [model.id for model in config.models]
    if request.model not in supported:
        hint = " (the service's config names those that it serves, under `models`)" if request.model in MODELS else ""
        raise ModelNotFound(
            f"there is no model {request.model!r} here; there is: {', '.join(supported)}{hint}",
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


def check_counts(request: InferenceRequest, spec: ModelSpec, config: AppConfig) -> None:
    """Raise InvalidParameter for more prompts or control images than may be. To be checked before any is fetched."""
    limit = min(config.jobs.max_queued_per_tenant, config.jobs.max_queued)
    if len(request.prompts) > limit:
        raise InvalidParameter(f"{len(request.prompts)} prompts were sent; more than {limit} pictures may never wait")
    if not spec.requires_control_image:
        return
    images = {image for prompt in request.prompts for image in prompt.control_images}
    urls = sum(map(is_image_url, images))
    if urls > config.fetch.max_urls:
        raise InvalidParameter(
            f"{urls} different URLs of control images were sent; one request may name {config.fetch.max_urls}: send "
            "its prompts in several requests"
        )


def is_image_url(image: str) -> bool:
    """Whether a control image is a URL, as the contract has it; otherwise it is base64."""
    return image.startswith("http")


def check_parameters(request: InferenceRequest, spec: ModelSpec, config: AppConfig) -> None:
    """Raise InvalidParameter for a value that is well formed and still cannot be served."""
    for index, prompt in enumerate(request.prompts):
        if prompt.resolution == "High":
            raise InvalidParameter(
                f"prompt {index}: {spec.id} has no resolution 'High'; set width and height",
                {"prompt_index": index, "parameter": "resolution"},
            )
        for name in ("prompt", "neg"):
            text = getattr(prompt, name) or ""
            word = (prompt.trigger_word or request.trigger_word or "") if name == "prompt" else ""
            fillings = text.count(TRIGGER) if word else 0
            if reserved := [token for token in RESERVED_TOKENS if token in text or (fillings and token in word)]:
                raise InvalidParameter(
                    f"prompt {index}: {name} holds {reserved[0]}, which stands for a picture; leave it out",
                    {"prompt_index": index, "parameter": name},
                )
            length = len(text) + fillings * (len(word) - len(TRIGGER))
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
    profile, why_profile = _profile(request, config, adapters)
    divisor = divisor_of(spec, profile)
    model = next((model for model in config.models if model.id == spec.id), ModelConfig(id=spec.id))
    if model.lossy and profile.name != "reference":
        raise InvalidParameter(
            f"profile: {profile.name} promises the trainer's own pixels, and this service runs {spec.id} with "
            f"{model.lossy}",
            {"parameter": "profile"},
        )

    def plan(index: int, prompt: Prompt) -> EditPlan:
        width = _default(prompt.width, spec.default_width)
        height = _default(prompt.height, spec.default_height)
        seed, why_seed = _seed(prompt, index, draw_seed)
        asked = "asked for" if prompt.width or prompt.height else "the model's default"
        return EditPlan(
            model=spec.id,
            profile=profile.name,
            prompt=fill_trigger(prompt, request.trigger_word, adapters),
            negative_prompt=prompt.neg or "",
            width=snap(width, divisor),
            height=snap(height, divisor),
            steps=_default(prompt.sample_steps, spec.default_steps),
            guidance_scale=_default(prompt.guidance_scale, spec.default_guidance_scale),
            seed=seed,
            output_format=request.output_format,
            control_images=tuple(control_images[image] for image in prompt.control_images) if control_images else (),
            adapters=tuple(adapters),
            exif=request.exif,
            vae_tiling=request.vae_tiling or model.vae_tiling,
            quantization=model.quantization,
            feature_cache=model.feature_cache,
            sampler=SAMPLER_NAMES.get(prompt.sampler or "", "flowmatch"),
            why={
                "size": f"{width}x{height} ({asked}), each side floored to a multiple of {divisor}",
                "seed": why_seed,
                "profile": why_profile,
            },
        )

    return [plan(index, prompt) for index, prompt in enumerate(request.prompts)]


def divisor_of(spec: ModelSpec, profile: Profile) -> int:
    """Pixels to whose multiple the sides are floored."""
    return profile.text_to_image_divisor if spec.family == "text_to_image" else spec.resolution_divisor


def _profile(request: InferenceRequest, config: AppConfig, adapters: Sequence[AdapterUse]) -> tuple[Profile, str]:
    """The effective profile, and why."""
    name = request.profile or config.preview_profile
    if name == AUTO:
        receipts = [use.receipt for use in adapters if use.receipt]
        return profile_of_trainer([r.trainer_version for r in receipts if r.trainer == "ai-toolkit"])
    return PROFILES[name], "asked for" if request.profile else "the service's default"


def _seed(prompt: Prompt, index: int, draw_seed: Callable[[], int]) -> tuple[int, str]:
    """The effective seed, and why."""
    if prompt.seed is None:
        return DEFAULT_SEED + index, f"default: {DEFAULT_SEED} + the prompt's index"
    if prompt.seed == -1:
        return draw_seed(), "drawn by the service, since -1 was asked for"
    return prompt.seed, "asked for"


def ignored_fields(request: InferenceRequest, spec: ModelSpec) -> list[str]:
    """The fields that were sent and mean nothing for the model, or nothing at all: misspelt, or at another level."""
    names = ["num_frames", "fps"]
    if not spec.requires_control_image:
        names += ["ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]
    known = {name for name in names if any(getattr(prompt, name) is not None for prompt in request.prompts)}
    if any(prompt.sampler is not None and prompt.sampler not in SAMPLER_NAMES for prompt in request.prompts):
        known.add("sampler")
    unknown = {f"prompts[].{name}" for prompt in request.prompts for name in prompt.model_extra or ()}
    unknown |= set(request.model_extra or ())
    told = (name[:MAX_NAME] for name in unknown if name.isprintable())
    return sorted(known | set(islice(told, MAX_NAMES)))


def exif_notes(plans: Sequence[EditPlan], images: Mapping[str, ControlImage]) -> list[str]:
    """A sentence for each control image (by sha256) whose EXIF rotation is not obeyed."""
    return [
        f"control image {number} of prompt {index} has EXIF orientation {images[sha256].exif_orientation}, which is "
        "ignored as the trainer does; send exif: apply to have it turned"
        for index, edit in enumerate(plans)
        for number, sha256 in enumerate(edit.control_images, start=1)
        if edit.exif == "ignore" and images[sha256].exif_orientation
    ]


def stretch_notes(plans: Sequence[EditPlan], images: Mapping[str, ControlImage]) -> list[str]:
    """A sentence for each picture whose shape is not that of its first control image (by sha256).

    Of several control images the first one is usually what is edited; the others show what goes into it.
    """
    notes = []
    for index, edit in enumerate(plans):
        if not edit.control_images:
            continue
        width, height = images[edit.control_images[0]].size
        ratio = (edit.width * height) / (edit.height * width)
        if max(ratio, 1 / ratio) > MAX_STRETCH:
            shapes = (
                f"the control image of prompt {index} is {width}x{height} and the result {edit.width}x{edit.height}"
            )
            notes.append(f"{shapes}: {STRETCHES[MODELS[edit.model].family]}; set width and height to its aspect")
    return notes


def fill_trigger(prompt: Prompt, trigger_word: str | None, adapters: Sequence[AdapterUse]) -> str:
    """The prompt with `[trigger]` replaced; a prompt's own word wins unless it is empty. No word: as it is.

    The word `auto` means the one that an adapter's file names.
    """
    word = prompt.trigger_word or trigger_word
    if word == AUTO:
        word, _ = _trained_trigger(adapters)
    return prompt.prompt.replace(TRIGGER, word) if word else prompt.prompt


def trigger_notes(request: InferenceRequest, adapters: Sequence[AdapterUse]) -> list[str]:
    """A sentence for each prompt whose `[trigger]` stays as it is."""
    trained, path = _trained_trigger(adapters)
    notes = []
    for index, prompt in enumerate(request.prompts):
        word = prompt.trigger_word or request.trigger_word
        if TRIGGER not in prompt.prompt or (word and word != AUTO) or (word == AUTO and trained):
            continue
        if trained:
            notes.append(
                f"prompt {index} says {TRIGGER} and the request has no trigger_word; {path!r} was trained with "
                f"{trained!r}: send trigger_word: auto to use it"
            )
        elif word == AUTO:
            notes.append(f"prompt {index} says {TRIGGER} and trigger_word is auto, but no adapter's file names a word")
    return notes


def _trained_trigger(adapters: Sequence[AdapterUse]) -> tuple[str | None, str | None]:
    """The first trigger word that an adapter's file names, and that adapter's path."""
    found = ((use.receipt.trigger_word, use.path) for use in adapters if use.receipt and use.receipt.trigger_word)
    return next(found, (None, None))


def _default(value: T | None, default: T) -> T:
    return default if value is None else value
