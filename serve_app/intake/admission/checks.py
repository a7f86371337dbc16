"""The checks of the contract, in its order. Pure: the caller does the input and output in between."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from serve_app.adapters.lora_root import no_lora_file
from serve_app.adapters.urls import is_url
from serve_app.config import AUTO, AppConfig
from serve_app.errors import (
    ControlImageRequired,
    InvalidParameter,
    LoraFileRequired,
    LoraNotFound,
    LoraPathForbidden,
    ModelNotFound,
    MoeFormatNotSupported,
    SingleLoraOnly,
    TooManyControlImages,
    TooManyLoras,
)
from serve_app.images.sizes import INPUT_SIZE
from serve_app.intake.admission.plan import TRIGGER, PlannedEdit, fill_trigger
from serve_app.intake.admission.stored_images import is_stored
from serve_app.intake.tenants import Caller
from serve_app.models.prompt_tokens import PromptTokens, max_text_tokens
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.models.repeat_request import without_url_secrets
from serve_app.schemas.requests import InferenceRequest, Lora, Prompt
from serve_app.tasks import MAX_TRIGGER_CHARS

# How many of the LoRAs that were sent an error lists.
MAX_LORAS_LISTED = 20
# Characters of all texts that the images of one request keep: prompts with the trigger word filled in, negative
# prompts, LoRA paths. 5,000 images may have 1,600 each.
MAX_KEPT_CHARS = 8_000_000
# Tokens that the text encoder replaces by images: one in a prompt would stand for an image that does not exist.
RESERVED_TOKENS = ("<|image_pad|>", "<|video_pad|>")


def find_model(request: InferenceRequest, config: AppConfig) -> ModelSpec:
    """The registry's entry for the request's model. Raises ModelNotFound if the config does not serve it."""
    supported = [model.id for model in config.models]
    if request.model not in supported:
        hint = " (its config lists the models that it serves, under `models`)" if request.model in MODELS else ""
        raise ModelNotFound(
            f"this service has no model {request.model!r}; it has: {', '.join(supported)}{hint}",
            {"supported_models": supported},
        )
    return MODELS[request.model]


def check_loras(request: InferenceRequest, spec: ModelSpec, config: AppConfig) -> None:
    """Raise LoraFileRequired, MoeFormatNotSupported, SingleLoraOnly or TooManyLoras."""
    paths = [lora.path for lora in request.loras]
    if not paths and config.require_lora:
        raise LoraFileRequired("loras is empty; this service needs at least one LoRA per request")
    if any(lora.transformer for lora in request.loras) and not spec.two_transformers:
        loras = [lora.model_dump(include=set(Lora.model_fields)) for lora in request.loras[:MAX_LORAS_LISTED]]
        raise MoeFormatNotSupported(f"{spec.id} has one transformer; leave out loras[].transformer", {"loras": loras})
    limit = config.max_loras_per_request
    if len(paths) > limit:
        details = {"loras": paths[:MAX_LORAS_LISTED], "max": limit}
        if limit == 1:
            raise SingleLoraOnly(f"{len(paths)} LoRAs were sent; this service takes one per request", details)
        raise TooManyLoras(f"{len(paths)} LoRAs were sent; this service takes at most {limit} per request", details)


def check_allowed(request: InferenceRequest, caller: Caller) -> None:
    """Raise LoraNotFound or LoraPathForbidden for the first LoRA that the caller's tenant may not use."""
    for lora in request.loras:
        if caller.may_use_lora(lora.path):
            continue
        if not is_url(lora.path):
            raise LoraNotFound(no_lora_file(lora.path), {"lora_path": lora.path})
        name = without_url_secrets(lora.path)
        raise LoraPathForbidden(
            f"your API key may not use the LoRA at {name!r}; ask your operator to allow it", {"lora_path": name}
        )


def check_amount(request: InferenceRequest, max_images: int) -> None:
    """Raise InvalidParameter if the request has more than `max_images` prompts, or more text than may be stored."""
    if len(request.prompts) > max_images:
        raise InvalidParameter(
            f"{len(request.prompts)} prompts were sent, and at most {max_images} images may wait in the queue",
            {"parameter": "prompts", "prompt_index": max_images, "max": max_images},
        )
    paths = sum(len(lora.path) for lora in request.loras)
    kept = list(
        accumulate(_filled_chars(prompt, request) + len(prompt.neg or "") + paths for prompt in request.prompts)
    )
    if kept[-1] > MAX_KEPT_CHARS:
        raise InvalidParameter(
            f"the prompts, with the trigger word and the LoRAs' paths, have {kept[-1]} characters in all, and at "
            f"most {MAX_KEPT_CHARS} are accepted; send several requests",
            {"parameter": "prompts", "prompt_index": bisect_right(kept, MAX_KEPT_CHARS), "max": MAX_KEPT_CHARS},
        )


def _filled_chars(prompt: Prompt, request: InferenceRequest) -> int:
    """Characters of a prompt with its trigger word filled in. An upper bound if an adapter's file names the word."""
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
    """Raise InvalidParameter if the request names more control images outside of its body than one request may."""
    if not spec.requires_control_image:
        return
    limit, named = config.fetch.max_urls, set[str]()
    for index, prompt in enumerate(request.prompts):
        named.update(filter(is_reference, prompt.control_images))
        if len(named) > limit:
            raise InvalidParameter(
                f"prompts 0 to {index} name more than {limit} different control images by URL, sha256 or upload, the "
                "limit of one request: send its prompts in several requests",
                {"parameter": "ctrl_img", "prompt_index": index, "max": limit},
            )


def is_reference(image: str) -> bool:
    """Whether a control image is named, by its URL or as a stored one, instead of sent in the body."""
    return image.startswith("http") or is_stored(image)


def check_parameters(request: InferenceRequest, spec: ModelSpec, config: AppConfig) -> None:
    """Raise InvalidParameter for a value that is well formed and that this model or config cannot serve.

    A prompt with the trigger word `auto` is checked again, by `check_lengths`, when the adapter's file is read.
    """
    for index, prompt in enumerate(request.prompts):
        if prompt.resolution == "High":
            raise InvalidParameter(
                f"prompt {index}: {spec.id} has no resolution 'High'; set width and height",
                {"prompt_index": index, "parameter": "resolution"},
            )
        check_size(index, prompt, spec)
        check_texts(index, fill_trigger(prompt, request.trigger_word, ()), prompt.neg or "", config)


def check_size(index: int, prompt: Prompt, spec: ModelSpec) -> None:
    """Raise InvalidParameter for a `size` next to a width or height, or one of an input that the model does not take.

    That an edit model's prompt has a control image was checked before.
    """
    details = {"prompt_index": index, "parameter": "size"}
    if prompt.size is not None and (prompt.width is not None or prompt.height is not None):
        raise InvalidParameter(f"prompt {index}: send size, or width and height, not both", details)
    if prompt.size == INPUT_SIZE and not spec.requires_control_image:
        raise InvalidParameter(
            f"prompt {index}: size is {INPUT_SIZE}, and {spec.id} takes no control image; set width and height", details
        )


def check_texts(index: int, prompt: str, neg: str, config: AppConfig) -> None:
    """Raise InvalidParameter if a text that the tokenizer reads is too long, or holds a token that means an image."""
    for name, text in (("prompt", prompt), ("neg", neg)):
        details = {"prompt_index": index, "parameter": name}
        if reserved := next((token for token in RESERVED_TOKENS if token in text), None):
            raise InvalidParameter(
                f"prompt {index}: {name} holds {reserved}, which stands for an image; leave it out", details
            )
        if len(text) > config.max_prompt_chars:
            raise InvalidParameter(
                f"prompt {index}: {name} has {len(text)} characters, and the limit is {config.max_prompt_chars}",
                details,
            )


def check_lengths(edits: Sequence[PlannedEdit], prompts: PromptTokens, config: AppConfig) -> None:
    """Raise InvalidParameter for a text that is too long with its trigger word filled in and next to its images.

    Without the checkpoint's tokenizer, some texts that are too long pass. The editor checks again, with the exact
    number of tokens.
    """
    for index, edit in enumerate(edits):
        plan, recipe = edit.plan, edit.recipe
        check_texts(index, plan.prompt, plan.negative_prompt, config)
        if recipe.max_prompt_tokens is not None:
            # The text is cut, and a note says so.
            continue
        limit = max_text_tokens(recipe, (plan.width, plan.height))
        texts = [("prompt", plan.prompt, recipe.encoder_sizes)]
        if recipe.guided:
            texts.append(("neg", plan.negative_prompt, recipe.negative_encoder_sizes))
        for name, text, sizes in texts:
            tokens = prompts.count(text, recipe, sizes, limit)
            if tokens > limit:
                raise InvalidParameter(
                    f"prompt {index}: {name} with its control images has {tokens} tokens, and with images of this "
                    f"size the model takes {limit}: shorten it",
                    {"prompt_index": index, "parameter": name, "tokens": tokens, "most": limit},
                )
