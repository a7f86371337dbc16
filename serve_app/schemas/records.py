"""Records that are stored with images and sent to clients: what an edit was made with, and by what.

`models/effective.py` and `engine/runtime_record.py` make them. A new field there needs a field here; a test compares
both. A field that was added after version 0.1.0 may be absent: clients still get the records of older versions.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from serve_app.schemas.documented import DescribedBy, Record, absent, with_optional_fields
from serve_app.schemas.requests import InferenceRequest

# Width and height in pixels.
Sides = Annotated[list[int], Field(min_length=2, max_length=2)]


class Factor(Record):
    """The scale that a LoRA's file gives its low-rank changes, before `network_multiplier`."""

    source: str = Field(
        description="Where the scale comes from: `none` (no alpha, so 1), `alpha tensors`, `lora_adapter_metadata`, or "
        "several joined by +."
    )
    min: float | None = Field(description="The smallest scale of a module; null if the header does not tell it.")
    median: float | None = Field(description="The median over the modules; null if the header does not tell it.")
    max: float | None = Field(description="The largest scale of a module; null if the header does not tell it.")


class Receipt(Record):
    """The description of a LoRA's file, read from its header."""

    kind: str = Field(description="lora, lokr, loha or full, or several joined by +.")
    ranks: list[int] = Field(description="All ranks that occur.")
    dtype: str = Field(description="The data type of the tensors, by its name in safetensors.")
    size_bytes: int = Field(description="The size of the file.")
    modules: int = Field(description="How many modules of the model the file changes.")
    top_level: list[str] = Field(description="The changed modules outside of the transformer's blocks.")
    ignored: list[str] = Field(description="Tensors that do not change the model.")
    trigger_word: str | None = Field(description="The trigger word that the trainer wrote.")
    trainer: str | None = Field(description="The program that wrote the file.")
    trainer_version: str | None = Field(description="The version of that program.")
    step: int | None = Field(description="The training step at which the file was written.")
    factor: Factor | None = Field(
        default_factory=absent, description="The scale that the file gives its changes; null if it is unknown."
    )
    notes: list[str] = Field(
        default_factory=absent, description="Sentences about other content of the file and how it was treated."
    )


class Guidance(Record):
    """How guidance_scale is applied."""

    true_cfg_scale: float = Field(description="The guidance scale.")
    guided: bool = Field(description="Whether the negative prompt is used: the scale is above 1.")
    rescaled_to_conditional_norm: bool = Field(description="Whether the guided prediction is rescaled.")
    forwards_a_step: int = Field(
        description="Forward passes of the transformer per step: 1, or 2 if guided; 1 in guided steps beyond "
        "`guided_steps`."
    )
    guided_steps: int = Field(
        default_factory=absent, description="How many steps, from the first on, compute both guidance branches."
    )
    meaning: str = Field(description="The same in a sentence.")


class Scheduler(Record):
    """The noise schedule."""

    model_config = ConfigDict(populate_by_name=True)

    sampler: str = Field(description="The name of the schedule.")
    class_: str = Field(alias="class", description="The scheduler's class in diffusers.")
    base_image_seq_len: int = Field(description="The scheduler's constant of this name.")
    max_image_seq_len: int = Field(description="The scheduler's constant of this name.")
    base_shift: float = Field(description="The scheduler's constant of this name.")
    max_shift: float = Field(description="The scheduler's constant of this name.")
    shift_terminal: float | None = Field(description="The scheduler's constant of this name; null for one step.")
    mu: float = Field(description="The shift of the schedule, which follows from the image's size.")
    sigmas: list[float] = Field(description="The noise level of each step, and the final 0.")


class Noise(Record):
    """The initial noise."""

    generator: str = Field(description="The device of the random generator.")
    seed: int = Field(description="The generator's seed.")
    shape: list[int] = Field(description="The shape of the latents.")


class TextEncoder(Record):
    """How the prompt is encoded."""

    position_ids: str = Field(description="The kind of position ids that the text encoder gets.")
    prompt_prefix: str = Field(description="Text that is put before the prompt.")
    max_prompt_tokens: int | None = Field(description="The prompt is cut after so many tokens; null: never.")


class VisionEncoder(Record):
    """The copies of a control image that the vision encoder gets."""

    sizes: list[Sides] = Field(description="Width and height to which it is resized, one after the other.")
    sizes_for_neg: list[Sides] = Field(description="The same for the negative prompt.")
    kernel: str = Field(description="How it is resized.")


class Resize(Record):
    """One resize of a control image."""

    size: Sides = Field(description="Width and height afterwards.")
    kernel: str = Field(description="The resize filter.")


class ControlImage(Record):
    """A control image and how it is prepared."""

    sha256: str = Field(description="The digest of the file, in hex.")
    size: Sides = Field(description="Width and height of the decoded image.")
    exif_orientation: int | None = Field(description="The EXIF orientation; null if the file has none.")
    conversions: list[str] = Field(description="What was done to make it 8-bit RGB.")
    vision_encoder: VisionEncoder = Field(description="The vision encoder's copies.")
    vae: list[Resize] = Field(description="The resizes before the VAE, one after the other.")
    tokens: int = Field(description="The image's tokens in the transformer.")


class AppliedLora(Record):
    """A LoRA of the edit."""

    path: str = Field(description="The path or URL that the request named, without the secret parts of a URL.")
    network_multiplier: float = Field(description="The strength.")
    of_tier: bool = Field(
        default_factory=absent, description="Whether it is the tier's own LoRA, which no request named."
    )
    id: str = Field(description="The identity of the file: another file under the same path has another.")
    receipt: Receipt | None = Field(description="What the file's header says.")
    modules_of_a_whole_one: int = Field(description="How many modules a LoRA of the whole transformer changes.")


class Tokens(Record):
    """The lengths of the transformer's sequences."""

    target: int = Field(description="Tokens of the image that is made.")
    control: int = Field(description="Tokens of the control images.")
    text_estimated: int = Field(description="An estimate of the tokens of prompt and control images as text.")


class MeasuredRange(Record):
    """One measure over all measured images."""

    worst: float | None = Field(description="That of the image with the largest difference; null: equal images.")
    median: float | None = Field(description="The median over all images; null: equal images.")


class MeasuredLoss(Record):
    """What a tier changes compared with `exact`, as it was measured."""

    psnr_db: MeasuredRange = Field(description="The peak signal-to-noise ratio (dB); higher is closer to exact.")
    ssim: MeasuredRange = Field(description="The structural similarity, 1 for equal images; higher is closer to exact.")
    latents: float | None = Field(
        description="The relative error of the final latents of the worst image; null if it was not measured."
    )
    lpips: MeasuredRange | None = Field(
        description="The perceptual distance; lower is closer to exact; null if it was not measured."
    )
    exact_s: float = Field(description="Median seconds of an exact edit.")
    tier_s: float = Field(description="Median seconds of the tier's edit of the same image.")
    cases: int = Field(description="How many images were compared.")
    measured_at: datetime = Field(description="When it was measured.")
    on: str = Field(
        description="On which LoRAs, prompts and control images, and which steps and guidance the exact images had."
    )


class EffectiveRecord(Record):
    """Every value that decides an image, and what follows from it."""

    model: str = Field(description="The id of the model.")
    base_model: str = Field(description="The model's checkpoint on the hub.")
    preset: str | None = Field(default_factory=absent, description="The preset that the request named.")
    profile: str = Field(description="Whose preparation of images and prompts is followed.")
    prompt: str = Field(description="The prompt, with the trigger word filled in.")
    neg: str = Field(description="The negative prompt.")
    width: int = Field(description="The image's width in pixels.")
    height: int = Field(description="The image's height in pixels.")
    sample_steps: int = Field(description="The number of denoising steps.")
    guidance_scale: float = Field(description="The guidance scale.")
    seed: int = Field(description="The seed, also where the service drew it.")
    sampler: str = Field(default_factory=absent, description="The name of the noise schedule.")
    output_format: str = Field(description="The image's file format.")
    exif: str = Field(description="`apply` if control images are rotated by their EXIF orientation, else `ignore`.")
    vae_tiling: bool = Field(description="Whether the VAE works in tiles.")
    quantization: str = Field(description="The format of the transformer's weights: `none` is that of the checkpoint.")
    feature_cache: float | None = Field(
        description="The change of the first block's output below which a step skips the other blocks; null: never."
    )
    quality: str = Field(
        default_factory=absent,
        description="`exact`, the name of a tier, or `lossy`: the model has options that change all of its images.",
    )
    loss: MeasuredLoss | None = Field(
        default_factory=absent,
        description="What was measured of the tier for these LoRAs; null for `exact`, and if nobody has measured it.",
    )
    why: dict[str, str] = Field(description="Where values come from, in words, by field.")
    request: InferenceRequest = Field(
        default_factory=absent,
        description="The body of a request for this one image, with every value that decides its pixels. Its control "
        "images are named by their digest.",
    )
    guidance: Guidance = Field(description="How the guidance scale is applied.")
    forwards: int = Field(description="Forward passes of the transformer.")
    scheduler: Scheduler = Field(description="The noise schedule.")
    noise: Noise = Field(description="The initial noise.")
    text_encoder: TextEncoder = Field(description="How the prompt is encoded.")
    control_images: list[ControlImage] = Field(description="The control images, in order.")
    loras: list[AppliedLora] = Field(description="The LoRAs: that of the tier, then the request's in their order.")
    loras_applied: str = Field(description="How the LoRAs change the weights, in words.")
    tokens: Tokens = Field(description="The lengths of the transformer's sequences.")
    transformer_flops_estimated: int = Field(description="Floating-point operations of all forward passes.")


class StoredEffectiveRecord(EffectiveRecord):
    """The EffectiveRecord of an image of a request. It is empty until the image is finished."""

    model_config = ConfigDict(json_schema_extra=with_optional_fields)


class AdapterFile(Record):
    """The file of a LoRA, as the editor loaded it."""

    id: str = Field(description="The LoRA's `id` in the effective record.")
    sha256: str = Field(description="The digest of the file, in hex.")
    factor: Factor | None = Field(
        default_factory=absent, description="The scale that the file gives its changes; null if it is unknown."
    )


class Reused(Record):
    """What the editor had computed for earlier edits."""

    prompts: int = Field(description="Encoded prompts.")
    controls: int = Field(description="Encoded control images.")


class RuntimeRecord(Record):
    """What only the editor knows of an edit. It is empty until the image is finished."""

    model_config = ConfigDict(json_schema_extra=with_optional_fields)

    device: str = Field(description="The name of the GPU, or `cpu`.")
    peak_memory_gib: float | None = Field(description="The most GPU memory that was allocated; null on a CPU.")
    dtype: str = Field(description="The data type of the transformer's computations.")
    threads: int = Field(description="CPU threads.")
    adapter_weights: str = Field(description="Where the untouched copy of the weights is.")
    offload: str = Field(description="Where the weights are: `none` (on the device) or `stream` (in host memory).")
    placement: str = Field(description="Why they are there, with the memory that was free at the start.")
    transformers: int = Field(description="How many devices have a copy of the transformer.")
    attention: str = Field(description="The attention kernel.")
    compile: str = Field(description="The setting `compile` of the model.")
    quantization: str = Field(description="The setting `quantization` of the model.")
    feature_cache: float | None = Field(description="The setting `feature_cache` of the model.")
    recompilations: int = Field(description="How often a compiled part was compiled again since the editor's start.")
    adapters: list[AdapterFile] = Field(description="The LoRAs' files, in the request's order.")
    versions: dict[str, str] = Field(description="Versions of libraries, by name.")
    reused: Reused = Field(description="What was computed for earlier edits.")


# As the service handles them: JSON that is not validated again.
EffectiveJson = Annotated[dict[str, Any], DescribedBy(EffectiveRecord)]
StoredEffectiveJson = Annotated[dict[str, Any], DescribedBy(StoredEffectiveRecord)]
RuntimeJson = Annotated[dict[str, Any], DescribedBy(RuntimeRecord)]
