"""Bodies about calibrations: how far the images of each tier are from the exact ones, as it was measured."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from serve_app.schemas.answers import ModelId, Moment
from serve_app.schemas.documented import Answer
from serve_app.schemas.records import MeasuredLoss
from serve_app.schemas.requests import MAX_LORAS, Lora, Prompt, Tolerant
from serve_app.schemas.text import Name

MAX_SETS, MAX_CASES = 50, 100
RUN_ID = "0f8fad5bd9cb469fa16570867728950e"
LORA_PATH = "my_job/my_lora.safetensors"
LOSS_EXAMPLE: dict[str, JsonValue] = {
    "psnr_db": {"worst": 41.2, "median": 44.9},
    "ssim": {"worst": 0.983, "median": 0.991},
    "latents": 0.041,
    "lpips": None,
    "exact_s": 14.2,
    "tier_s": 9.8,
    "cases": 11,
    "measured_at": "2026-11-30T09:10:00Z",
    "on": f"11 prompts of prompts.yaml, with {LORA_PATH} at 1, exact with 25 steps at guidance 4",
}


class CalibrationRequest(Tolerant):
    """What to measure."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "model": "qwen_image_edit",
                    "loras": [[{"path": LORA_PATH}]],
                    "prompts": [{"prompt": "make it night", "ctrl_img": "https://example.com/cat.png"}],
                }
            ]
        },
    )

    model: Name = Field(description="An id from `/v1/models`.")
    tiers: list[Name] = Field([], max_length=3, description="The tiers to measure. Default: all of the model.")
    loras: list[Annotated[list[Lora], Field(min_length=1, max_length=MAX_LORAS)]] = Field(
        [], max_length=MAX_SETS, description="Sets of LoRAs, each of which is measured on its own. Default: none."
    )
    base: bool = Field(True, description="Whether the model without LoRAs is measured, too.")
    prompts: list[Prompt] = Field(
        [], max_length=MAX_CASES, description="The prompts and control images to measure on. Default: none."
    )
    training_job: Name | None = Field(
        None, description="The name of a training job, whose samples are measured on instead of `prompts`."
    )

    @model_validator(mode="after")
    def _has_one_kind_of_cases(self) -> Self:
        if bool(self.prompts) == (self.training_job is not None):
            raise PydanticCustomError("calibration_cases", "Send either prompts or a training_job")
        if not self.base and not self.loras:
            raise PydanticCustomError("calibration_sets", "Send sets of loras, or leave out base: false")
        return self


class CalibrationRunInfo(Answer):
    """A calibration that goes through the queue of edits."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": RUN_ID,
                    "model": "qwen_image_edit",
                    "tiers": ["balanced", "fast"],
                    "requests": [RUN_ID],
                    "created_at": "2026-11-30T09:00:00Z",
                    "ended_at": None,
                    "problem": None,
                }
            ]
        }
    )

    id: str = Field(description="The id of the calibration.")
    model: ModelId
    tiers: list[str] = Field(description="The tiers that it measures.")
    requests: list[str] = Field(description="The ids of the requests that make its images, of priority bulk.")
    created_at: Moment = Field(description="When it was started.")
    ended_at: Moment | None = Field(description="When it ended; null while it is under way.")
    problem: str | None = Field(description="Why it could not measure everything, in words.")


class CalibratedLora(Answer):
    """A LoRA that a loss was measured with."""

    path: str = Field(description="The path or URL, as requests name it.")
    id: str = Field(description="The identity of the file: another file under the same path has another.")
    network_multiplier: float = Field(description="The strength.")


class CalibrationInfo(Answer):
    """What was measured of one tier for one set of LoRAs."""

    model: ModelId
    tier: str = Field(description="The tier.")
    loras: list[CalibratedLora] = Field(description="The LoRAs; empty for the model without one.")
    is_current: bool = Field(
        description="Whether the tier and the checkpoint are still what they were. If not, the figures hold no more, "
        "and requests count as not calibrated."
    )
    loss: MeasuredLoss
    speedup: float = Field(description="How many times as fast as exact.")
    measured_at: Moment = Field(description="When it was measured.")
    settings: dict[str, str | int | float] = Field(description="What the tier was, by the keys of `models[].tiers`.")
    checkpoint: str = Field(description="The checkpoint that it was measured on.")
    set: str = Field(description="Where the prompts and control images came from.")
    sizes: list[str] = Field(description="The sizes of the images in pixels, `WxH`.")
    steps: list[int] = Field(description="The denoising steps of the exact images.")
    guidance_scales: list[float] = Field(
        [], description="The guidance scales of the exact images; empty if an earlier version measured it without them."
    )
    how: str = Field(description="By the command on one machine, or through the service's queue.")


class CalibrationList(Answer):
    """What is measured, and what is being measured."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "calibrations": [
                        {
                            "model": "qwen_image_edit",
                            "tier": "fast",
                            "loras": [{"path": LORA_PATH, "id": "9f86d081884c7d65", "network_multiplier": 1.0}],
                            "is_current": True,
                            "loss": LOSS_EXAMPLE,
                            "speedup": 1.45,
                            "measured_at": "2026-11-30T09:10:00Z",
                            "settings": {"feature_cache": 0.12},
                            "checkpoint": "Qwen/Qwen-Image-Edit",
                            "set": "prompts.yaml",
                            "sizes": ["1024x1024"],
                            "steps": [25],
                            "guidance_scales": [4.0],
                            "how": "edits-server calibrate",
                        }
                    ],
                    "runs": [],
                }
            ]
        }
    )

    calibrations: list[CalibrationInfo] = Field(description="The measured losses, the newest first.")
    runs: list[CalibrationRunInfo] = Field(
        description="Calibrations that go through the queue: those under way, then the newest of those that have ended."
    )
