"""What each model is, as data: the rows behind `/v1/models` and behind every default of a request.

Free of torch, so that an ingress may read it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """One model of the family.

    `resolution_divisor` is in pixels: width and height are floored to a multiple of it.
    `max_control_images` is what one prompt may carry; 0 means a text-to-image model, which ignores them.
    """

    id: str
    base_model: str
    resolution_divisor: int
    max_control_images: int
    default_steps: int = 25
    default_guidance_scale: float = 4.0
    default_width: int = 1024
    default_height: int = 1024
    two_transformers: bool = False

    @property
    def requires_control_image(self) -> bool:
        return self.max_control_images > 0


MODELS = {
    spec.id: spec
    for spec in (
        ModelSpec(
            id="qwen_image_edit",
            base_model="Qwen/Qwen-Image-Edit",
            resolution_divisor=32,
            max_control_images=1,
        ),
    )
}
