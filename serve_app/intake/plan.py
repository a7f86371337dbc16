"""From a request to plans: the checks of the contract in its order, and the effective value of everything.

Pure: no input or output, no torch. What needs a disk or the network is done by the caller in between.
"""

import secrets
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice
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
from serve_app.images.decode import ImageFacts
from serve_app.images.sizes import snap
from serve_app.models.profile import PROFILES, Profile, profile_of_trainer
from serve_app.models.prompt_tokens import PromptTokens, max_text_tokens
from serve_app.models.recipe import SAMPLERS, make_recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.models.repeat_request import STORED_IMAGE
from serve_app.schemas import InferenceRequest, Lora, Prompt
from serve_app.tasks import MAX_TRIGGER_CHARS, AdapterUse, EditPlan, SamplerName

T = TypeVar("T")

# How much of what somebody sent by mistake is told.
MAX_NAMES, MAX_NAME = 20, 60
# Characters of all texts that the images of one request keep: prompts with the trigger word filled in, negative
# prompts, LoRA paths. 5,000 images may have 1,600 each.
MAX_KEPT_CHARS = 8_000_000

DEFAULT_SEED = 42
SAMPLER_NAMES: dict[str, SamplerName] = {name: name for name in SAMPLERS}
TRIGGER = "[trigger]"
# Where the text encoder puts images: one in a prompt would ask for an image that is not there.
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
        loras = [lora.model_dump(include=set(Lora.model_fields)) for lora in request.loras[:MAX_NAMES]]
        raise MoeFormatNotSupported(f"{spec.id} has one transformer; leave out loras[].transformer", {"loras": loras})
    limit = config.max_loras_per_request
    if len(paths) > limit:
        details = {"loras": paths[:MAX_NAMES], "max": limit}
        if limit == 1:
            raise SingleLoraOnly(f"{len(paths)} LoRAs were sent; this service takes one a request", details)
        raise TooManyLoras(f"{len(paths)} LoRAs were sent; this service takes at most {limit} a request", details)


def check_amount(request: InferenceRequest, most_waiting: int) -> None:
    """Raise InvalidParameter if the request has more images than may ever wait, or would keep too much text."""
    if len(request.prompts) > most_waiting:
        raise InvalidParameter(
            f"{len(request.prompts)} prompts were sent; more than {most_waiting} images may never wait",
            {"parameter": "prompts", "prompt_index": most_waiting, "max": most_waiting},
        )
    paths = sum(len(lora.path) for lora in request.loras)
    kept = list(
        accumulate(_filled_chars(prompt, request) + len(prompt.neg or "") + paths for prompt in request.prompts)
    )
    if kept[-1] > MAX_KEPT_CHARS:
        raise InvalidParameter(
            f"the prompts, with the trigger word and the LoRAs' paths, have {kept[-1]} characters in all, at most "
            f"{MAX_KEPT_CHARS} are accepted; send several requests",
            {"parameter": "prompts", "prompt_index": bisect_right(kept, MAX_KEPT_CHARS), "max": MAX_KEPT_CHARS},
        )


def _filled_chars(prompt: Prompt, request: InferenceRequest) -> int:
    """Characters of a prompt with its trigger word, without filling it in; at most so many if a file names the word."""
    word = prompt.trigger_word or request.trigger_word
    if not word:
        return len(prompt.prompt)
    length = MAX_TRIGGER_CHARS if word == AUTO else len(word)
    return len(prompt.prompt) + prompt.prompt.count(TRIGGER) * max(length - len(TRIGGER), 0)


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


def check_sources(request: InferenceRequest, spec: ModelSpec, config: AppConfig) -> None:
    """Raise InvalidParameter for more control images that lie elsewhere than one request may name."""
    if not spec.requires_control_image:
        return
    limit, named = config.fetch.max_urls, set[str]()
    for index, prompt in enumerate(request.prompts):
        named.update(filter(lies_elsewhere, prompt.control_images))
        if len(named) > limit:
            raise InvalidParameter(
                f"up to prompt {index} there are more than {limit} different control images that are named by URL or "
                "sha256, and one request may name no more: send its prompts in several requests",
                {"parameter": "ctrl_img", "prompt_index": index, "max": limit},
            )


def lies_elsewhere(image: str) -> bool:
    """Whether a control image is named, by its URL or as a stored one, and not sent as base64."""
    return image.startswith(("http", STORED_IMAGE))


def check_parameters(request: InferenceRequest, spec: ModelSpec, config: AppConfig) -> None:
    """Raise InvalidParameter for a value that is well formed and still cannot be served.

    A prompt whose trigger word an adapter's file names is checked again once the file is read.
    """
    for index, prompt in enumerate(request.prompts):
        if prompt.resolution == "High":
            raise InvalidParameter(
                f"prompt {index}: {spec.id} has no resolution 'High'; set width and height",
                {"prompt_index": index, "parameter": "resolution"},
            )
        check_texts(index, fill_trigger(prompt, request.trigger_word, ()), prompt.neg or "", config)


def check_texts(index: int, prompt: str, neg: str, config: AppConfig) -> None:
    """Raise InvalidParameter if a text, as the tokenizer gets it, is too long or stands for what is not there."""
    for name, text in (("prompt", prompt), ("neg", neg)):
        details = {"prompt_index": index, "parameter": name}
        if reserved := next((token for token in RESERVED_TOKENS if token in text), None):
            raise InvalidParameter(
                f"prompt {index}: {name} holds {reserved}, which stands for an image; leave it out", details
            )
        if len(text) > config.max_prompt_chars:
            raise InvalidParameter(
                f"prompt {index}: {name} has {len(text)} characters, at most {config.max_prompt_chars} are accepted",
                details,
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


def check_lengths(
    plans: Sequence[EditPlan],
    spec: ModelSpec,
    images: Mapping[str, ImageFacts],
    prompts: PromptTokens,
    config: AppConfig,
) -> None:
    """Raise InvalidParameter for a text that is refused only now that its trigger word and its images are known.

    The editor raises the same for what a prompt has too many tokens for; it knows them later, and always exactly.
    """
    for index, plan in enumerate(plans):
        check_texts(index, plan.prompt, plan.negative_prompt, config)
        image_sizes = [images[sha256].size for sha256 in plan.control_images]
        recipe = make_recipe(spec, PROFILES[plan.profile], plan, image_sizes)
        if recipe.max_prompt_tokens is not None:
            # It is cut, and a note says so.
            continue
        room = max_text_tokens(recipe, (plan.width, plan.height))
        read = [("prompt", plan.prompt, recipe.encoder_sizes)]
        if recipe.guided:
            read.append(("neg", plan.negative_prompt, recipe.negative_encoder_sizes))
        for name, text, sizes in read:
            if (tokens := prompts.count(text, recipe, sizes, room)) > room:
                raise InvalidParameter(
                    f"prompt {index}: {name} with its control images has {tokens} tokens, and with images of this "
                    f"size the model takes {room}: shorten it",
                    {"prompt_index": index, "parameter": name, "tokens": tokens, "most": room},
                )


def ignored_fields(request: InferenceRequest, spec: ModelSpec) -> list[str]:
    """The fields that were sent and mean nothing for the model, or nothing at all: misspelt, or at another level."""
    names = ["num_frames", "fps"]
    if not spec.requires_control_image:
        names += ["ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]
    known = {name for name in names if any(getattr(prompt, name) is not None for prompt in request.prompts)}
    if any(prompt.sampler is not None and prompt.sampler not in SAMPLER_NAMES for prompt in request.prompts):
        known.add("sampler")
    if spec.requires_control_image and any(prompt.ctrl_img and prompt.numbered_images for prompt in request.prompts):
        known.add("ctrl_img")
    if any(prompt.neg and not is_guided(prompt, spec) for prompt in request.prompts):
        known.add("neg")
    unknown = {f"prompts[].{name}" for prompt in request.prompts for name in prompt.model_extra or ()}
    unknown |= {f"loras[].{name}" for lora in request.loras for name in lora.model_extra or ()}
    unknown |= set(request.model_extra or ())
    told = (name[:MAX_NAME] for name in unknown if name.isprintable())
    return sorted(known | set(islice(told, MAX_NAMES)))


def is_guided(prompt: Prompt, spec: ModelSpec) -> bool:
    """Whether the negative prompt is used at all: see `Recipe.guided`."""
    return _default(prompt.guidance_scale, spec.default_guidance_scale) > 1


def fill_trigger(prompt: Prompt, trigger_word: str | None, adapters: Sequence[AdapterUse]) -> str:
    """The prompt with `[trigger]` replaced; a prompt's own word wins unless it is empty. No word: as it is.

    The word `auto` means the one that an adapter's file names.
    """
    word = prompt.trigger_word or trigger_word
    if word == AUTO:
        word, _ = trained_trigger(adapters)
    return prompt.prompt.replace(TRIGGER, word) if word else prompt.prompt


def trained_trigger(adapters: Sequence[AdapterUse]) -> tuple[str | None, str | None]:
    """The first trigger word that an adapter's file names, and that adapter's path."""
    found = ((use.receipt.trigger_word, use.path) for use in adapters if use.receipt and use.receipt.trigger_word)
    return next(found, (None, None))


def _default(value: T | None, default: T) -> T:
    return default if value is None else value
