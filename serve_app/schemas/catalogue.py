"""What clients can choose from: the bodies of answers about models and their tiers, presets and LoRAs."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from serve_app import tasks
from serve_app.schemas.answers import NextCursor
from serve_app.schemas.documented import Answer, DescribedBy
from serve_app.schemas.records import Receipt
from serve_app.schemas.requests import QualityTier


class TierInfo(Answer):
    """A tier of a model: what it does, and the fields of a prompt that it sets."""

    quality: QualityTier = Field(description="What `quality` of a request names.")
    sample_steps: int | None = Field(description="Its denoising steps; null: the prompt's.")
    guidance_scale: float | None = Field(description="Its guidance scale; null: the prompt's.")
    sampler: str | None = Field(description="Its sampler; null: the prompt's.")
    quantization: str = Field(description="The format of the transformer's weights: `none` is that of the checkpoint.")
    feature_cache: float | None = Field(
        description="The change of the first block's output below which a step skips the other blocks; null: never."
    )
    guidance_gate: float | None = Field(
        description="The share of the steps that compute the negative prompt's branch too; null: all."
    )
    needs_calibration: bool = Field(
        description="Whether requests are refused if nobody has measured the tier's loss for their LoRAs."
    )


class ModelInfo(Answer):
    """A model that this service serves."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "qwen_image_edit",
                    "base_model": "Qwen/Qwen-Image-Edit",
                    "resolution_divisor": 32,
                    "default_steps": 25,
                    "default_guidance_scale": 4.0,
                    "requires_control_image": True,
                    "is_video_model": False,
                    "default_num_frames": None,
                    "default_fps": None,
                    "max_control_images": 1,
                    "max_loras": 4,
                    "requires_lora": True,
                    "qualities": ["exact", "fast"],
                    "tiers": [
                        {
                            "quality": "fast",
                            "sample_steps": None,
                            "guidance_scale": None,
                            "sampler": None,
                            "quantization": "none",
                            "feature_cache": 0.12,
                            "guidance_gate": 0.5,
                            "needs_calibration": True,
                        }
                    ],
                }
            ]
        }
    )

    id: str = Field(description="The id, as requests name the model.")
    base_model: str = Field(description="The checkpoint on the hub.")
    resolution_divisor: int = Field(description="Width and height are rounded down to a multiple of it.")
    default_steps: int = Field(description="The steps of a prompt that names none.")
    default_guidance_scale: float = Field(description="The guidance scale of a prompt that names none.")
    requires_control_image: bool = Field(description="Whether a prompt needs a control image.")
    is_video_model: bool = Field(False, description="Always false.")
    default_num_frames: int | None = Field(None, description="Always null: no model makes videos.")
    default_fps: int | None = Field(None, description="Always null: no model makes videos.")
    max_control_images: int = Field(description="How many control images a prompt may have; 0: it uses none.")
    max_loras: int = Field(description="How many LoRAs a request may have.")
    requires_lora: bool = Field(description="Whether a request needs a LoRA.")
    qualities: list[QualityTier] = Field(
        description="What `quality` of a request may be, the most exact first. Empty: the model has lossy options of "
        "its own, and requests leave `quality` out."
    )
    tiers: list[TierInfo] = Field(description="What each quality other than `exact` does.")


class OpenAiModel(Answer):
    """A model, or a preset of the caller, as OpenAI's clients list them."""

    id: str = Field(description="What `model` may be in OpenAI's routes: the id of a model, or the name of a preset.")
    object: Literal["model"] = Field("model", description="Always model.")
    created: int = Field(description="Seconds since the epoch: the first release of this service, for every entry.")
    owned_by: str = Field(description="The organisation of a model's checkpoint; `presets` for a preset.")


class ModelList(Answer):
    """The models in two shapes: `models` as in the reference server, `object` and `data` as in OpenAI's API."""

    models: list[ModelInfo] = Field(description="The models, in the order of the config.")
    object: Literal["list"] = Field("list", description="Always list.")
    data: list[OpenAiModel] = Field(description="The served models, then the usable presets of the caller.")


class PresetLora(Answer):
    """A LoRA of a preset."""

    path: str = Field(description="Relative to the LoRA root, or a URL, without its secret parts.")
    network_multiplier: float = Field(description="The strength, -2 to 2.")


class PresetProblem(Answer):
    """Why a preset cannot be used at the moment."""

    code: str = Field(description="The error code of what is wrong.")
    message: str = Field(description="A sentence that says what is wrong.")


class PresetMaxLoss(Answer):
    """The largest loss of a tier that a preset accepts."""

    psnr_db: float | None = Field(None, description="The lowest PSNR (dB) of a measured image.")
    ssim: float | None = Field(None, description="The lowest SSIM of a measured image.")


class PresetInfo(Answer):
    """A preset. A field that it does not set is null: the request's own value or the service's default applies."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "house-style",
                    "model": "qwen_image_edit",
                    "loras": [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 0.8}],
                    "sample_steps": 8,
                    "guidance_scale": 1.0,
                    "neg": None,
                    "size": "input",
                    "trigger_word": "sks",
                    "profile": None,
                    "output_format": "png",
                    "quality": "fast",
                    "max_loss": {"psnr_db": 35.0, "ssim": None},
                    "problem": None,
                }
            ]
        }
    )

    name: str = Field(description="What a request's `preset` says.")
    model: str = Field(description="The id of the model.")
    loras: list[PresetLora] = Field(description="The LoRAs, unless a request sends `loras`.")
    sample_steps: int | None = Field(None, description="1 to 150, for each prompt.")
    guidance_scale: float | None = Field(None, description="0 to 20, for each prompt.")
    neg: str | None = Field(None, description="The negative prompt, for each prompt.")
    size: str | None = Field(None, description="`input`, or width and height as `1024x768`, for each prompt.")
    trigger_word: str | None = Field(None, description="What `[trigger]` in a prompt is replaced by.")
    profile: str | None = Field(None, description="Whose preparation of images and prompts is followed.")
    output_format: str | None = Field(None, description="The file format of the images.")
    quality: str | None = Field(None, description="How exactly the model's own pixels are made.")
    max_loss: PresetMaxLoss | None = Field(
        None, description="The largest loss that the quality may have; with a larger one the images are `exact`."
    )
    problem: PresetProblem | None = Field(None, description="Why it cannot be used at the moment; null if it can.")


class PresetList(Answer):
    """The presets of the caller."""

    presets: list[PresetInfo] = Field(description="The presets that the caller may use, by name.")


class LoraInfo(Answer):
    """One file under the LoRA root."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "path": "my_lora_job/my_lora.safetensors",
                    "fits": ["qwen_image_edit"],
                    "problem": None,
                    "receipt": {
                        "kind": "lora",
                        "ranks": [32],
                        "dtype": "BF16",
                        "size_bytes": 590058784,
                        "modules": 840,
                        "top_level": [],
                        "ignored": [],
                        "trigger_word": "sks",
                        "trainer": "ai-toolkit",
                        "trainer_version": "0.12.26",
                        "step": 2000,
                        "factor": {"source": "none", "min": 1.0, "median": 1.0, "max": 1.0},
                        "notes": [],
                    },
                }
            ]
        }
    )

    path: str = Field(description="The path below the LoRA root, as requests name the file.")
    fits: list[str] = Field(description="The served models that it can be applied to.")
    receipt: Annotated[tasks.Receipt, DescribedBy(Receipt)] | None = Field(
        description="What the file's header says; null if it fits no served model."
    )
    problem: str | None = Field(description="Why it fits none of the served models; null if it fits one.")


class LoraList(Answer):
    """A page of the files under the LoRA root."""

    loras: list[LoraInfo] = Field(description="The files, by path.")
    next_cursor: NextCursor
