"""What clients send: the bodies of requests. Lenient on purpose: unknown fields are ignored and "512" is a number.

A field that changes pixels continues in `EditPlan` (`tasks.py`), in `intake/admission/plan.py`, and in the records of
`models/effective.py` and `models/repeat_request.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError
from typing_extensions import TypeAliasType

from serve_app.config import MAX_PROMPT_CHARS, LossLimits, ProfileName, QualityName
from serve_app.images.output_formats import DEFAULT_OUTPUT_FORMAT, OutputFormatName, describe_output_formats
from serve_app.images.sizes import INPUT_SIZE, MAX_SIDE, MIN_SIDE, read_size
from serve_app.schemas.text import MAX_NAME_CHARS, Name, Nullable, Text, Url, check_image_url, check_token
from serve_app.tasks import Priority

MAX_SEED = 2**63 - 1
MAX_DEADLINE_S = 7 * 86400.0
# Entries of the lists in one body. The configured limits are lower; these bound the work before those are checked.
MAX_PROMPTS, MAX_LORAS, MAX_EVENTS = 10_000, 100, 100
# How many faults of a body's shape an answer lists.
MAX_FAULTS = 20
# The values of `tasks.WebhookEvent`.
WebhookEventName = Literal["started", "image", "succeeded", "failed", "canceled"]
DEFAULT_WEBHOOK_EVENTS: tuple[WebhookEventName, ...] = ("succeeded", "failed", "canceled")

SUBMIT_EXAMPLE: dict[str, Any] = {
    "model": "qwen_image_edit",
    "trigger_word": "sks",
    "prompts": [
        {
            "prompt": "[trigger] a photo of a person",
            "width": 1024,
            "height": 1024,
            "seed": 42,
            "sample_steps": 25,
            "guidance_scale": 4.0,
            "neg": "",
            "ctrl_img": "<base64_or_url>",
        }
    ],
    "loras": [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 1.0}],
}

# Types with a name of their own in the OpenAPI document, and so in clients that are generated from it.
Profile = TypeAliasType("Profile", ProfileName)
QualityTier = TypeAliasType("QualityTier", QualityName)
OutputFormat = TypeAliasType("OutputFormat", OutputFormatName)
ExifUse = TypeAliasType("ExifUse", Literal["ignore", "apply"])
WebhookEvent = TypeAliasType("WebhookEvent", WebhookEventName)
VideoResolution = TypeAliasType("VideoResolution", Literal["Default", "High"])
TransformerName = TypeAliasType("TransformerName", Literal["low", "high"])

# Text that the tokenizer reads. `max_prompt_chars` of the config is the limit with the trigger word filled in.
PromptText = Annotated[Text, Field(max_length=MAX_PROMPT_CHARS)]
ControlImageText = Annotated[Text, AfterValidator(check_image_url)]


# Stands for a field that is required without a preset and was not sent.
_MISSING = object()


def _refuse_missing(value: Any) -> Any:
    if value is _MISSING:
        raise PydanticKnownError("missing")
    return value


def _without_default(schema: dict[str, Any]) -> None:
    """Drop the default of a field that is never left at it: it is sent, or a preset sets it."""
    schema.pop("default", None)


def _check_size(size: str) -> str:
    try:
        if size != INPUT_SIZE:
            read_size(size)
    except ValueError:
        raise PydanticCustomError(
            "size_invalid",
            "A size is 'input', or width and height in pixels as in '1024x768', each from {least} to {most}",
            {"least": MIN_SIDE, "most": MAX_SIDE},
        ) from None
    return size


# The pattern is for the OpenAPI document; the check's own message says more.
SizeText = Annotated[
    Name, AfterValidator(_check_size), WithJsonSchema({"type": "string", "pattern": f"^({INPUT_SIZE}|[0-9]+x[0-9]+)$"})
]


class Tolerant(Nullable):
    """Accepts unknown fields, as the contract requires, and keeps them in `model_extra`."""

    model_config = ConfigDict(extra="allow")


class Lora(Tolerant):
    """A LoRA and its strength."""

    path: Url = Field(description="Relative to the LoRA root, or an http(s) URL of a .safetensors file.")
    network_multiplier: float = Field(1.0, ge=-2.0, le=2.0, description="The strength; 0 has no effect.")
    transformer: TransformerName | None = Field(None, description="For models with two transformers only.")


class Prompt(Tolerant):
    """One image to be made."""

    prompt: PromptText = Field(description="The instruction. `[trigger]` in it is replaced by the trigger word.")
    trigger_word: PromptText | None = Field(
        None, description="Used instead of the request's, unless it is empty. Default: the request's."
    )
    width: int | None = Field(
        None, ge=64, le=4096, description="Pixels; floored to the model's divisor. Default: the preset's, or 1024."
    )
    height: int | None = Field(
        None, ge=64, le=4096, description="Pixels; floored to the model's divisor. Default: the preset's, or 1024."
    )
    size: SizeText | None = Field(
        None,
        description="Instead of width and height: `input` is the aspect of the first control image at about 1 MP, "
        "`1024x768` is width and height in pixels. Default: the preset's.",
    )
    guidance_scale: float | None = Field(
        None,
        ge=0,
        le=20,
        description="How strongly the prompt is followed; at 1 or less the negative prompt has no effect. Default: the "
        "preset's, or the model's `default_guidance_scale`.",
    )
    sample_steps: int | None = Field(
        None, ge=1, le=150, description="Denoising steps. Default: the preset's, or the model's `default_steps`."
    )
    neg: PromptText | None = Field(
        None,
        description="The negative prompt, used only if guidance_scale is above 1. Default: the preset's, or empty.",
    )
    seed: int | None = Field(
        None, ge=-1, le=MAX_SEED, description="-1: drawn by the service. Default: 42 + the prompt's index."
    )
    sampler: Name | None = Field(
        None,
        description="flowmatch, or lightning for adapters distilled to few steps; others are ignored. Default: "
        "flowmatch.",
    )
    num_frames: int | None = Field(None, ge=1, le=1000, description="Ignored: no model makes videos.")
    fps: int | None = Field(None, ge=1, le=120, description="Ignored: no model makes videos.")
    resolution: VideoResolution | None = Field(None, description="Of video models. `High` is refused.")
    ctrl_img: ControlImageText | None = Field(
        None,
        description="A URL (starts with http), base64, a data: URL, part: and the name of a part of the same body, "
        "upload: and the id of an upload, or sha256: and the hex digest of a control image that an earlier request of "
        "the same tenant sent and that is still stored. It is not used if a numbered control image is sent.",
    )
    ctrl_img_1: ControlImageText | None = Field(None, description="The first control image, as in `ctrl_img`.")
    ctrl_img_2: ControlImageText | None = Field(None, description="The second control image, as in `ctrl_img`.")
    ctrl_img_3: ControlImageText | None = Field(None, description="The third control image, as in `ctrl_img`.")

    @property
    def all_images(self) -> list[str]:
        """Every control image that is set, whether or not it is used."""
        return [image for image in (self.ctrl_img, *self.numbered_images) if image]

    @property
    def numbered_images(self) -> list[str]:
        """`ctrl_img_1..3`, those that are set."""
        return [image for image in (self.ctrl_img_1, self.ctrl_img_2, self.ctrl_img_3) if image]

    @property
    def control_images(self) -> list[str]:
        """The control images in order: `ctrl_img_1..3` if any is set, else `ctrl_img`."""
        return self.numbered_images or ([self.ctrl_img] if self.ctrl_img else [])


_FIRST_PROMPTS = TypeAdapter(list[Prompt])


def _check_prompts(prompts: Any) -> Any:
    """Limit the number of prompts, and report all faults of the first ones; of the rest only one fault is reported."""
    if isinstance(prompts, list):
        if len(prompts) > MAX_PROMPTS:
            raise PydanticCustomError("too_long", "At most {most} prompts are accepted", {"most": MAX_PROMPTS})
        _FIRST_PROMPTS.validate_python(prompts[:MAX_FAULTS])
    return prompts


class MaxLoss(LossLimits, Nullable):
    """The largest loss of a tier that a request accepts; every image that was measured has to be within it.

    At least one limit is set. Unknown fields are refused, so that a misspelt limit is not taken for none.
    """


class InferenceRequest(Tolerant):
    """A request for one image per prompt."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [SUBMIT_EXAMPLE]})

    preset: Name | None = Field(
        None, description="A name from `/v1/presets`, which sets the fields that the request does not send."
    )
    model: Annotated[Name, BeforeValidator(_refuse_missing)] = Field(
        "", description="An id from `/v1/models`. Required without a preset.", json_schema_extra=_without_default
    )
    loras: Annotated[list[Lora], BeforeValidator(_refuse_missing)] = Field(
        [],
        max_length=MAX_LORAS,
        description="Required without a preset, whose LoRAs the list replaces.",
        json_schema_extra=_without_default,
    )
    prompts: Annotated[
        list[Prompt],
        Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
        BeforeValidator(_check_prompts),
    ] = Field(description="Each makes one image.")
    trigger_word: PromptText | None = Field(
        None,
        description="Replaces [trigger] in every prompt. `auto`: the word that a LoRA's file names. Default: the "
        "preset's.",
    )
    hf_token: Annotated[SecretStr, AfterValidator(check_token)] | None = Field(
        None, max_length=MAX_NAME_CHARS, description="Used for the downloads of this request; never stored."
    )
    profile: Profile | None = Field(
        None,
        description="Whose preparation of images and prompts is followed. Default: the preset's, or the service's.",
    )
    quality: QualityTier = Field(
        "exact",
        description="How exactly the model's own pixels are made: `exact`, or a tier that `/v1/models` lists for the "
        "model, which is faster. Default: the preset's, or exact.",
    )
    max_loss: MaxLoss | None = Field(
        None,
        description="Make the images `exact`, and say so, if the loss of the tier that `quality` names is larger than "
        "this or was not measured for these LoRAs. Default: the preset's, or none: then a tier that was not measured "
        "is refused.",
    )
    output_format: OutputFormat = Field(
        DEFAULT_OUTPUT_FORMAT,
        description=f"{describe_output_formats()} Default: the preset's, or {DEFAULT_OUTPUT_FORMAT}.",
    )
    vae_tiling: bool = Field(False, description="The VAE works in tiles, as the trainer's low-memory setting has it.")
    exif: ExifUse = Field("ignore", description="Whether control images are rotated by their EXIF orientation.")
    deadline_s: float | None = Field(
        None,
        gt=0,
        le=MAX_DEADLINE_S,
        description="The request must end within so many seconds. Default: the service's.",
    )
    priority: Priority = Field(
        Priority.INTERACTIVE,
        description="While interactive images wait, one image in five is of a bulk request.",
    )
    webhook_url: Url | None = Field(None, description="A URL that the service posts the request's events to.")
    webhook_events: list[WebhookEvent] = Field(
        list(DEFAULT_WEBHOOK_EVENTS), max_length=MAX_EVENTS, description="Which events are posted to webhook_url."
    )

    @model_validator(mode="before")
    @classmethod
    def _needs_model_and_loras(cls, data: Any) -> Any:
        """Mark the fields that are missing, so that each is reported in its place among the other faults."""
        if not isinstance(data, dict) or data.get("preset") is not None:
            return data
        return data | {name: _MISSING for name in ("model", "loras") if data.get(name) is None}
