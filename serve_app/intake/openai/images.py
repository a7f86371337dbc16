"""Calls of OpenAI's images API as requests of this service. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import ValidationError

from serve_app.errors import ControlImageRequired, InvalidParameter, TooManyControlImages
from serve_app.images.sizes import INPUT_SIZE
from serve_app.intake.admission.ignored import MAX_NAME_CHARS, MAX_NAMES
from serve_app.models.registry import ModelSpec
from serve_app.schemas.openai import (
    AUTO_SIZE,
    QUALITIES,
    SYNONYMS,
    UNUSED_FIELDS,
    ImageLora,
    ImagesCall,
)
from serve_app.schemas.requests import MAX_SEED, InferenceRequest

# The route for models that edit images, and the one for models that make them from text alone.
EDITS, GENERATIONS = "edits", "generations"
# The file format of a call that names none, where the preset names none either.
DEFAULT_FORMAT = "png"
# Fields with the meaning and the name that they have in a request.
OF_REQUEST = ("trigger_word", "profile", "priority", "deadline_s", "hf_token", "exif", "vae_tiling")
OF_PROMPT = ("sampler",)
# The fields of a call for what has another name in a request.
FIELDS = {"neg": "negative_prompt", "sample_steps": "num_inference_steps", "ctrl_img": "image", "prompts": "n"}


@dataclass(frozen=True)
class Target:
    """What a call's `model` means: a model, or a preset for one.

    `model` is None where the preset decides it. `preset_sets` are the fields that the preset sets, by their names in a
    request or a prompt.
    """

    spec: ModelSpec
    preset: str | None = None
    model: str | None = None
    preset_sets: frozenset[str] = frozenset()


def to_request(call: ImagesCall, route: str, target: Target) -> InferenceRequest:
    """The request that a call stands for. Raises RequestError."""
    _check_route(call, route, target.spec)
    body: dict[str, Any] = {name: "" for name in ignored_names(call) if name not in InferenceRequest.model_fields}
    body |= _sent(call, OF_REQUEST)
    if target.preset is None:
        body |= {"model": target.spec.id, "loras": []}
    else:
        # The model is null, like every field that is not sent, unless it replaces the preset's.
        body |= {"preset": target.preset, "model": target.model}
    if call.loras is not None:
        body["loras"] = [_lora(index, lora) for index, lora in enumerate(call.loras)]
    if call.quality is not None and call.quality in QUALITIES:
        body["quality"] = QUALITIES[call.quality]
    if call.output_format is not None or "output_format" not in target.preset_sets:
        body["output_format"] = call.output_format or DEFAULT_FORMAT
    prompt = _prompt(call, target)
    body["prompts"] = [prompt | seed for seed in _seeds(call)]
    try:
        return InferenceRequest.model_validate(body)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
        names = [part for part in fault["loc"] if isinstance(part, str) and part != "prompts"]
        name = FIELDS.get(names[0], names[0]) if names else "prompt"
        raise InvalidParameter(f"{name}: {fault['msg']}", {"parameter": name}) from error


def ignored_names(call: ImagesCall) -> list[str]:
    """The fields of a call that were sent and have no effect on any model."""
    sent = call.model_fields_set
    unused = {name for name in UNUSED_FIELDS if name in sent}
    if call.output_compression is not None:
        unused.add("output_compression")
    if call.partial_images and not call.stream:
        unused.add("partial_images")
    if call.response_format == "url" and call.stream:
        unused.add("response_format")
    unknown = (name[:MAX_NAME_CHARS] for name in call.model_extra or () if name.isprintable())
    return sorted(unused | set(islice(unknown, MAX_NAMES)))


def parameter_of(details: Mapping[str, Any]) -> str | None:
    """The field of a call that an error of a request is about, from the error's details."""
    name = details.get("parameter")
    return FIELDS.get(name, name) if isinstance(name, str) else None


def _check_route(call: ImagesCall, route: str, spec: ModelSpec) -> None:
    """Raise InvalidParameter, ControlImageRequired or TooManyControlImages unless the model serves this route."""
    other = GENERATIONS if route == EDITS else EDITS
    if spec.requires_control_image != (route == EDITS):
        what = "edits images" if spec.requires_control_image else "makes images from text alone"
        raise InvalidParameter(f"{spec.id} {what}: use /v1/images/{other}", {"parameter": "model"})
    sent = len(call.control_images)
    if route == EDITS and not sent:
        raise ControlImageRequired(f"image is missing: {spec.id} edits an image, so send one", {"model": spec.id})
    if sent > spec.max_control_images:
        raise TooManyControlImages(
            f"{sent} images were sent; {spec.id} takes {spec.max_control_images}", {"max": spec.max_control_images}
        )


def _prompt(call: ImagesCall, target: Target) -> dict[str, Any]:
    """The prompt of every image, without a seed."""
    prompt: dict[str, Any] = {"prompt": call.prompt} | _sent(call, OF_PROMPT)
    for name in SYNONYMS:
        if (value := _one_value(call, name)) is not None:
            prompt[name] = value
    images = call.control_images
    names = ["ctrl_img"] if len(images) == 1 else ["ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]
    prompt |= dict(zip(names, images, strict=False))
    if call.size is not None and call.size != AUTO_SIZE:
        prompt["size"] = call.size
    elif images and "size" not in target.preset_sets:
        prompt["size"] = INPUT_SIZE
    return prompt


def _seeds(call: ImagesCall) -> list[dict[str, int]]:
    """The seed of each image, as a part of its prompt. A request's own default is one more for each prompt, too."""
    first = call.seed
    if first is None:
        return [{}] * call.n
    if first == -1:
        return [{"seed": -1}] * call.n
    if first + call.n - 1 > MAX_SEED:
        raise InvalidParameter(
            f"seed: {call.n} images have the seeds {first} and up, and {MAX_SEED} is the largest",
            {"parameter": "seed"},
        )
    return [{"seed": seed} for seed in range(first, first + call.n)]


def _lora(index: int, lora: ImageLora) -> dict[str, Any]:
    strengths = {value for value in (lora.network_multiplier, lora.scale) if value is not None}
    if len(strengths) > 1:
        raise InvalidParameter(
            f"loras: entry {index} has scale {lora.scale:g} and network_multiplier {lora.network_multiplier:g}, which "
            "are two names of one thing: send one",
            {"parameter": "loras"},
        )
    body: dict[str, Any] = {"path": lora.path, "transformer": lora.transformer}
    return body | ({"network_multiplier": strengths.pop()} if strengths else {})


def _one_value(call: ImagesCall, name: str) -> Any:
    """The value of what has several names. Raises InvalidParameter if they differ."""
    names = [each for each in SYNONYMS[name] if getattr(call, each) is not None]
    values = [getattr(call, each) for each in names]
    if any(value != values[0] for value in values):
        raise InvalidParameter(
            f"{' and '.join(names)} are names of one thing and have different values: send one",
            {"parameter": names[-1]},
        )
    return values[0] if values else None


def _sent(call: ImagesCall, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(call, name)) is not None}
