"""The bodies of OpenAI's images API, as its clients send and read them.

A form sends every field as text, which pydantic's lax mode converts. Unknown fields are ignored, as in every request.
"""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType

from serve_app.images.sizes import INPUT_SIZE, MAX_SIDE, MIN_SIDE, read_size
from serve_app.schemas.answers import RequestId
from serve_app.schemas.documented import Answer
from serve_app.schemas.records import MeasuredLoss
from serve_app.schemas.requests import (
    MAX_DEADLINE_S,
    MAX_LORAS,
    MAX_SEED,
    ControlImageText,
    ExifUse,
    OutputFormat,
    Profile,
    PromptText,
    Tolerant,
    TransformerName,
)
from serve_app.schemas.text import MAX_NAME_CHARS, Name, Url, check_token
from serve_app.tasks import Priority

MAX_IMAGES, MAX_PARTIAL_IMAGES = 10, 3
# The size that takes the first image's aspect, or the default of a model that takes no image.
AUTO_SIZE = "auto"
# Fields that this service has no use for. An answer lists those that were sent under `ignored`.
UNUSED_FIELDS = ("user", "safety_identifier", "moderation", "input_fidelity", "style", "background")
# The names under which a call may send one thing, ours first.
SYNONYMS = {
    "sample_steps": ("sample_steps", "num_inference_steps", "steps"),
    "guidance_scale": ("guidance_scale", "true_cfg_scale"),
    "neg": ("neg", "negative_prompt"),
}
# Their names of a quality, and ours. `auto` leaves the choice to the preset, or else is exact.
QUALITIES = {
    "high": "exact",
    "standard": "exact",
    "hd": "exact",
    "xhigh": "exact",
    "max": "exact",
    "medium": "balanced",
    "low": "fast",
    "exact": "exact",
    "balanced": "balanced",
    "fast": "fast",
    "turbo": "turbo",
}
# The names as a type that pydantic checks. mypy accepts only literals that are written out.
if TYPE_CHECKING:
    QualityName = str
else:
    QualityName = Literal["auto", *QUALITIES]

# Types with a name of their own in the OpenAPI document, and so in clients that are generated from it.
ImageQuality = TypeAliasType("ImageQuality", QualityName)
MadeQuality = TypeAliasType("MadeQuality", Literal["high", "medium", "low"])
ResponseFormat = TypeAliasType("ResponseFormat", Literal["b64_json", "url"])
Background = TypeAliasType("Background", Literal["auto", "opaque"])
# A value that is accepted whatever it is.
Unused = Annotated[Any, WithJsonSchema({"type": "string"})]


def _refuse_mask(value: Any) -> Any:
    raise PydanticCustomError("unsupported", "Masks are not supported: say in the prompt what is to change")


def _refuse_file_id(value: Any) -> Any:
    raise PydanticCustomError("unsupported", "Files are not supported: send image_url, or the file in a form")


def _refuse_transparent(value: Any) -> Any:
    if value == "transparent":
        raise PydanticCustomError("unsupported", "Transparent backgrounds are not supported")
    return value


def _check_size(size: str) -> str:
    try:
        if size not in (AUTO_SIZE, INPUT_SIZE):
            read_size(size)
    except ValueError as error:
        raise PydanticCustomError(
            "size_invalid",
            "A size is auto, or width and height in pixels as in 1024x768, each from {least} to {most}",
            {"least": MIN_SIDE, "most": MAX_SIDE},
        ) from error
    return size


def _read_list(value: Any) -> Any:
    """A list that a form sends as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError(
            "list_invalid", 'Send a list, as JSON where the body is a form: [{"path": "my_lora.safetensors"}]'
        ) from error


def _as_list(value: Any) -> Any:
    """A single image as a list of one."""
    return [value] if isinstance(value, str) else value


def _as_references(value: Any) -> Any:
    """Images that are sent as plain strings in place of objects."""
    if not isinstance(value, list):
        return value
    return [{"image_url": each} if isinstance(each, str) else each for each in value]


class ImageLora(Tolerant):
    """A LoRA of a call."""

    path: Url = Field(description="Relative to the LoRA root, or an http(s) URL of a .safetensors file.")
    network_multiplier: float | None = Field(None, ge=-2.0, le=2.0, description="Its strength. Default: 1.0.")
    scale: float | None = Field(None, ge=-2.0, le=2.0, description="Another name of `network_multiplier`.")
    transformer: TransformerName | None = Field(None, description="For models with two transformers only.")


class ImageReference(Tolerant):
    """An image in a JSON body."""

    image_url: ControlImageText = Field(description="An http(s) URL, or a `data:` URL.")
    file_id: Annotated[str | None, BeforeValidator(_refuse_file_id)] = Field(None, description="Not supported.")


class ImagesCall(Tolerant):
    """The fields that both routes have."""

    prompt: PromptText = Field(description="What to make. `[trigger]` in it is replaced by the trigger word.")
    model: Name | None = Field(None, description="The id of a model, or the name of a preset.")
    preset: Name | None = Field(None, description="The name of a preset, where `model` does not name it.")
    n: int = Field(1, ge=1, le=MAX_IMAGES, description="How many images to make, with seeds s, s + 1 and so on.")
    size: Annotated[str, AfterValidator(_check_size)] | None = Field(
        None,
        description="`WxH` in pixels, each from 64 to 4096 and floored to the model's divisor. `auto`, the default: "
        "the preset's, or else the first image's aspect at about 1 MP.",
    )
    quality: ImageQuality | None = Field(
        None,
        description="`auto`, `high`, `standard` and `hd` are exact. `medium` is balanced and `low` is fast, where the "
        "service has them.",
    )
    output_format: OutputFormat | None = Field(None, description="Default: the preset's, or else `png`.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Ignored: JPEG has quality 95.")
    response_format: ResponseFormat = Field(
        "b64_json", description="Whether the answer holds each image, or its address."
    )
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: int = Field(
        0, ge=0, le=MAX_PARTIAL_IMAGES, description="How many previews of each image a stream brings."
    )
    background: Annotated[Background | None, BeforeValidator(_refuse_transparent)] = Field(
        None, description="Ignored: images are opaque."
    )
    user: Unused = Field(None, description="Ignored.")
    safety_identifier: Unused = Field(None, description="Ignored.")
    moderation: Unused = Field(None, description="Ignored.")
    input_fidelity: Unused = Field(None, description="Ignored.")
    style: Unused = Field(None, description="Ignored.")
    loras: Annotated[list[ImageLora] | None, BeforeValidator(_read_list)] = Field(
        None, max_length=MAX_LORAS, description="The LoRAs, instead of a preset's. In a form: this list as JSON."
    )
    num_inference_steps: int | None = Field(None, ge=1, le=150, description="Denoising steps.")
    steps: int | None = Field(None, ge=1, le=150, description="Another name of `num_inference_steps`.")
    sample_steps: int | None = Field(None, ge=1, le=150, description="Another name of `num_inference_steps`.")
    guidance_scale: float | None = Field(None, ge=0, le=20, description="How strongly the prompt is followed.")
    true_cfg_scale: float | None = Field(None, ge=0, le=20, description="Another name of `guidance_scale`.")
    negative_prompt: PromptText | None = Field(None, description="Used only if `guidance_scale` is above 1.")
    neg: PromptText | None = Field(None, description="Another name of `negative_prompt`.")
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="Default: 42. -1: drawn by the service.")
    sampler: Name | None = Field(None, description="As in `/v1/inference`.")
    trigger_word: PromptText | None = Field(None, description="As in `/v1/inference`.")
    profile: Profile | None = Field(None, description="As in `/v1/inference`.")
    priority: Priority | None = Field(None, description="As in `/v1/inference`.")
    deadline_s: float | None = Field(None, gt=0, le=MAX_DEADLINE_S, description="As in `/v1/inference`.")
    exif: ExifUse | None = Field(None, description="As in `/v1/inference`.")
    vae_tiling: bool | None = Field(None, description="As in `/v1/inference`.")
    hf_token: Annotated[SecretStr, AfterValidator(check_token)] | None = Field(
        None, max_length=MAX_NAME_CHARS, description="As in `/v1/inference`; never stored."
    )

    @property
    def control_images(self) -> list[str]:
        """The images to edit, in the order in which they were sent."""
        return []

    def drop_images(self) -> None:
        """Free the images, and whatever else was sent that is not a field."""
        for name in self.model_extra or ():
            setattr(self, name, None)


class ImagesGeneration(ImagesCall):
    """The body of `POST /v1/images/generations`."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"model": "qwen_image", "prompt": "a red bicycle in the rain"}]}
    )


class ImagesEdit(ImagesCall):
    """The body of `POST /v1/images/edits`, as JSON."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "model": "qwen_image_edit",
                    "prompt": "make it night",
                    "images": [{"image_url": "https://example.com/photograph.jpg"}],
                    "loras": [{"path": "my_lora_job/my_lora.safetensors"}],
                }
            ]
        },
    )

    image: Annotated[list[ControlImageText] | None, BeforeValidator(_as_list)] = Field(
        None, description="The images to edit: URLs, `data:` URLs or base64. In a form: the files."
    )
    images: Annotated[list[ImageReference] | None, BeforeValidator(_as_references)] = Field(
        None, description="The images to edit."
    )
    mask: Annotated[Unused, BeforeValidator(_refuse_mask)] = Field(None, description="Not supported.")

    @property
    def control_images(self) -> list[str]:
        return [*(self.image or ()), *(reference.image_url for reference in self.images or ())]

    def drop_images(self) -> None:
        super().drop_images()
        self.image = self.images = None


class ImageData(Answer):
    """An image: its file or its address, as the call asked for; the other one is null."""

    b64_json: str | None = Field(None, description="The file of the image, in base64.")
    url: str | None = Field(None, description="Where a client downloads the image.")
    seed: int = Field(description="The seed of this image.")


class InputTokens(Answer):
    """Tokens by what they stand for."""

    image_tokens: int = Field(description="Tokens of the images to edit, as the transformer sees them.")
    text_tokens: int = Field(description="Tokens that the text encoder reads: an estimate.")


class ImagesUsage(Answer):
    """What was computed, in tokens of the model's transformer. Nothing is charged by it."""

    input_tokens: int = Field(description="Tokens of the prompt and of the images to edit, for all images made.")
    input_tokens_details: InputTokens = Field(description="The same by kind.")
    output_tokens: int = Field(description="Tokens of the images that were made.")
    total_tokens: int = Field(description="The sum of both.")


TIER = "The service's own name of `quality`: `exact`, the name of a tier, or `lossy`."
LOSS = "What was measured of the tier for these LoRAs; null for `exact`, and if nobody has measured it."
USAGE_EXAMPLE: dict[str, Any] = {
    "input_tokens": 4400,
    "input_tokens_details": {"image_tokens": 3888, "text_tokens": 512},
    "output_tokens": 3888,
    "total_tokens": 8288,
}


class ImagesAnswer(Answer):
    """The answer to a call."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "created": 1795424409,
                    "background": "opaque",
                    "output_format": "png",
                    "quality": "high",
                    "size": "1152x864",
                    "usage": USAGE_EXAMPLE,
                    "tier": "exact",
                    "loss": None,
                    "request_id": "0f8fad5bd9cb469fa16570867728950e",
                    "ignored": ["user"],
                    "notes": [],
                    "data": [{"seed": 42, "url": None, "b64_json": "iVBORw0KGgo="}],
                }
            ]
        }
    )

    created: int = Field(description="When the images were finished, in seconds since the epoch.")
    background: Literal["opaque"] = Field(description="Images are opaque.")
    output_format: OutputFormat = Field(description="The file format of the images.")
    quality: MadeQuality = Field(
        description="What was done: `high` is exact, `medium` balanced, `low` fast or turbo. With a model that has "
        "lossy options of its own it is `medium`."
    )
    size: str = Field(description="The size of the first image in pixels, `WxH`.")
    usage: ImagesUsage = Field(description="What was computed.")
    tier: str = Field(description=TIER)
    loss: MeasuredLoss | None = Field(description=LOSS)
    request_id: RequestId
    ignored: list[str] = Field(description="Fields that were sent and have no effect.")
    notes: list[str] = Field(description="What the sender may not have meant.")
    data: list[ImageData] = Field(description="The images.")


class StreamedImage(Answer):
    """What the events with an image have in common."""

    created_at: int = Field(description="When the event was sent, in seconds since the epoch.")
    index: int = Field(description="The number of the image, from 0.")
    background: Literal["opaque"] = Field(description="Images are opaque.")
    size: str = Field(description="The size of the finished image in pixels, `WxH`.")
    quality: MadeQuality = Field(description="The quality of the finished image.")
    output_format: OutputFormat = Field(description="The file format of `b64_json`.")
    b64_json: str = Field(description="The file, in base64.")


class PartialImage(StreamedImage):
    """A preview of an image that is being made: a small JPEG."""

    type: Literal["image_edit.partial_image", "image_generation.partial_image"] = Field(
        description="The name of the event."
    )
    partial_image_index: int = Field(description="The number of this preview of the image, from 0.")


class CompletedImage(StreamedImage):
    """A finished image."""

    type: Literal["image_edit.completed", "image_generation.completed"] = Field(description="The name of the event.")
    seed: int = Field(description="The seed of this image.")
    usage: ImagesUsage = Field(description="What was computed for this image.")
    tier: str = Field(description=TIER)
    loss: MeasuredLoss | None = Field(description=LOSS)


class OpenAIErrorFacts(Answer):
    """An error, as OpenAI's clients read it."""

    message: str = Field(description="What is wrong, for people.")
    type: str = Field(description="The kind of error, as OpenAI names it.")
    param: str | None = Field(None, description="The field that is at fault.")
    code: str = Field(description="The kind of error, for programs.")


class OpenAIErrorBody(Answer):
    """An error in the shape that OpenAI's clients read."""

    error: OpenAIErrorFacts = Field(description="The error.")


class StreamError(OpenAIErrorBody):
    """An error after the stream has begun. It is the last event."""

    type: Literal["error"] = Field(description="The name of the event.")


# The data of each server-sent event, by the event's name.
EDIT_EVENTS: dict[str, type[BaseModel]] = {
    "image_edit.partial_image": PartialImage,
    "image_edit.completed": CompletedImage,
    "error": StreamError,
}
GENERATION_EVENTS: dict[str, type[BaseModel]] = {
    "image_generation.partial_image": PartialImage,
    "image_generation.completed": CompletedImage,
    "error": StreamError,
}
