"""What keeps a preview that is made again from being equal to the trainer's sample image, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from serve_app.models.registry import MODELS
from serve_app.training.folders import TrainingJob
from serve_app.training.samples import Sample

FactCode = Literal[
    "JPEG", "WEBP", "QUANTIZED_BASE", "TILED_VAE", "EMA", "CONTROL_IMAGE_TWICE", "DTYPE", "LORA_ROUNDING"
]

# In this dtype, a LoRA that is applied next to the weights differs from a merged one in the last bits only.
EXACT_DTYPE = "float32"


@dataclass(frozen=True)
class Fact:
    """`differs`: whether this makes images differ, although everything else is done as in training."""

    code: FactCode
    text: str
    differs: bool


def facts_of(job: TrainingJob, sample: Sample) -> Iterator[Fact]:
    """What there is to know when a preview of this sample is compared."""
    settings = job.settings
    if settings is None:
        return
    if settings.format in ("jpg", "jpeg"):
        yield Fact("JPEG", "the sample is a JPEG (quality 75, 4:2:0), so ours is saved the same way first", False)
    if settings.format == "webp":
        yield Fact("WEBP", "the sample is a WebP with loss, so ours is saved the same way first", False)
    if settings.quantized:
        text = "the trainer sampled on a quantised base (model.quantize): a service that does not cannot be equal to it"
        yield Fact("QUANTIZED_BASE", text, True)
    if settings.low_vram:
        text = (
            "the trainer's VAE worked in tiles (model.low_vram); the request asks for tiles, too (vae_tiling), which "
            "comes closer and may still differ"
        )
        yield Fact("TILED_VAE", text, True)
    if settings.ema:
        yield Fact("EMA", "the weights of the checkpoint and of the sample are the average of training (EMA)", False)
    if _encoder_sees_two(job, sample):
        yield Fact(
            "CONTROL_IMAGE_TWICE",
            "with the key ctrl_img, the trainer shows this model's text encoder the control image twice, which a "
            "request cannot ask for; name it ctrl_img_1 in the training config",
            True,
        )


def facts_of_edit(job: TrainingJob, dtype: str, *, merges_lora: bool) -> Iterator[Fact]:
    """What there is to know about an image of ours: `dtype` is what its editor computed in, by torch's name.

    `merges_lora`: the editor wrote a LoRA into the weights.
    """
    theirs = job.settings.dtype if job.settings else None
    if theirs is not None and theirs != dtype:
        yield Fact("DTYPE", f"the trainer computed in {theirs}, and this service in {dtype}", True)
    if merges_lora and dtype != EXACT_DTYPE:
        yield Fact(
            "LORA_ROUNDING",
            f"the trainer applies the LoRA next to the weights and this service within them, which {dtype} rounds "
            "differently",
            True,
        )


def _encoder_sees_two(job: TrainingJob, sample: Sample) -> bool:
    of_plus = job.model is not None and MODELS[job.model].family == "edit_plus"
    return of_plus and any(key == "ctrl_img" for key, _ in sample.control_images)
