"""A fixed edit that needs no file: what a replica makes before it takes traffic, and `verify` for an operator."""

import math

import numpy as np
import PIL.Image

from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.images.sizes import snap
from serve_app.models.registry import ModelSpec
from serve_app.tasks import EditPlan

# Below this (dB), two images of one edit are not apart by roundings: something is broken. Unrelated images of one
# contrast are at -3 dB.
LEAST_LIKENESS_DB = 6.0


def fixed_image() -> PIL.Image.Image:
    """A control image without a file: three gradients, one a channel."""
    across = PIL.Image.linear_gradient("L")
    return PIL.Image.merge(
        "RGB", (across, across.transpose(PIL.Image.Transpose.ROTATE_90), PIL.Image.radial_gradient("L"))
    )


def fixed_plan(spec: ModelSpec, width: int, height: int, steps: int) -> EditPlan:
    """The plan of the fixed edit, the size brought to what the model takes."""
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
    )


def fixed_files(plan: EditPlan) -> list[bytes]:
    """The control images of a fixed plan, encoded."""
    return [encode(fixed_image(), OUTPUT_FORMATS[plan.output_format], {})] * len(plan.control_images)


def likeness(plain: PIL.Image.Image, other: PIL.Image.Image) -> float:
    """How far `other` is from `plain`, in dB below the contrast of `plain` itself; infinite for equal images."""
    expected = np.asarray(plain, dtype=np.float64)
    error = float(np.square(np.asarray(other, dtype=np.float64) - expected).mean())
    return 10 * math.log10(float(expected.var()) / error) if error else math.inf
