"""A fixed edit without input files. A replica makes it before it takes traffic, and `edits-server verify` makes it."""

import math

import numpy as np
import PIL.Image

from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.images.sizes import snap
from serve_app.models.registry import ModelSpec
from serve_app.tasks import EditPlan

# Two images of one edit that are less similar than this (dB) differ by more than rounding: something is broken.
# Unrelated images of the same contrast have about -3 dB.
MIN_SIMILARITY_DB = 6.0


def fixed_image() -> PIL.Image.Image:
    """A control image of three gradients, one per channel."""
    across = PIL.Image.linear_gradient("L")
    return PIL.Image.merge(
        "RGB", (across, across.transpose(PIL.Image.Transpose.ROTATE_90), PIL.Image.radial_gradient("L"))
    )


def fixed_plan(spec: ModelSpec, width: int, height: int, steps: int, quantization: str = "none") -> EditPlan:
    """The plan of the fixed edit, on weights in this format. The size is rounded to one that the model supports."""
    return EditPlan(
        model=spec.id,
        profile="reference",
        prompt="a red house at night",
        negative_prompt="",
        width=max(64, snap(width, spec.resolution_divisor)),
        height=max(64, snap(height, spec.resolution_divisor)),
        steps=steps,
        guidance_scale=spec.default_guidance_scale,
        seed=42,
        output_format="png",
        control_images=("",) * min(1, spec.max_control_images),
        quantization=quantization,
    )


def fixed_control_images(plan: EditPlan) -> list[bytes]:
    """The control images of a fixed plan, encoded."""
    return [encode(fixed_image(), OUTPUT_FORMATS[plan.output_format], {})] * len(plan.control_images)


def similarity_db(plain: PIL.Image.Image, other: PIL.Image.Image) -> float:
    """The similarity of two images: the variance of `plain` over their mean squared difference, in dB.

    Infinite for equal images.
    """
    expected = np.asarray(plain, dtype=np.float64)
    error = float(np.square(np.asarray(other, dtype=np.float64) - expected).mean())
    return 10 * math.log10(float(expected.var()) / error) if error else math.inf
