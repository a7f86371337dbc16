"""Tiers: named ways of making an image faster than `exact`, each with a loss that can be measured."""

import hashlib
import json
from typing import Any, Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from serve_app.config.section import ConfigSection

QuantizationName = Literal["none", "fp8"]
# The noise schedules: the checkpoint's own, and that of adapters distilled to few steps. See models/recipe.py.
SamplerName = Literal["flowmatch", "lightning"]
# What a denoising step does after the guidance gate: see `TierConfig.guidance_gate_rest`.
GateRest = Literal["drop", "reuse"]

TierName = Literal["balanced", "fast", "turbo"]
# What a request may ask for. `exact` is what every model makes that has no lossy options of its own.
QualityName = Literal["exact", "balanced", "fast", "turbo"]
TIER_NAMES: tuple[TierName, ...] = get_args(TierName)


class TierConfig(ConfigSection):
    """What one tier does to be faster. At least one key besides `uncalibrated` has to be set."""

    quantization: QuantizationName = Field(
        "none",
        description="`fp8` computes the linear layers of the blocks in eight bits, by editors of its own: the "
        "deployment `Editor-<model id>-<tier>`. Needs the package torchao; not with `offload: stream` or "
        "`adapter_weights: hooks`.",
    )
    feature_cache: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="A step that changes the result of the first block by less than this share since the last whole "
        "forward takes over the other blocks' results from that forward. Null: every step computes all blocks. Not "
        "with `offload: stream`.",
    )
    guidance_gate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="The share of the steps, from the first one, that compute the prompt's and the negative prompt's "
        "branch. Later steps compute the prompt's branch only. Null: all steps compute both.",
    )
    guidance_gate_rest: GateRest = Field(
        "drop",
        description="What the steps after the guidance gate use: the prompt's branch alone (`drop`), or with the last "
        "difference between the two branches added again (`reuse`).",
    )
    sampler: SamplerName | None = Field(None, description="The noise schedule. Null: the request's.")
    adapter: str | None = Field(
        None,
        description="A LoRA, named as in requests, that the tier applies under the request's own LoRAs: one that was "
        "distilled to few steps. It does not count for `max_loras_per_request`, and tenants need no permission for it.",
    )
    adapter_scale: float = Field(1.0, ge=-2, le=2, description="The strength of `adapter`.")
    steps: PositiveInt | None = Field(None, le=150, description="The number of denoising steps. Null: the request's.")
    guidance_scale: float | None = Field(None, ge=0, le=20, description="The guidance scale. Null: the request's.")
    uncalibrated: Literal["refuse", "allow"] = Field(
        "refuse",
        description="What happens to requests with LoRAs for which nobody measured the tier's loss: they are refused, "
        'or made with the loss "not measured".',
    )

    @property
    def has_own_editors(self) -> bool:
        """Whether editors of its own make its images, since their weights are others than those of `exact`."""
        return self.quantization != "none"

    def settings(self) -> dict[str, Any]:
        """What decides the tier's pixels, ready for JSON: every key except `uncalibrated`."""
        return self.model_dump(mode="json", exclude={"uncalibrated"})

    def digest(self, adapter_id: str | None = None) -> str:
        """The SHA-256 (hex) of what decides the tier's pixels. `adapter_id` is the identity of the tier's own LoRA.

        What was measured holds for a tier with the same digest.
        """
        settings = self.settings() | {"adapter": adapter_id if self.adapter else None}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _is_not_exact(self) -> Self:
        if self.settings() == TierConfig.model_construct().settings():
            raise ValueError("the tier changes nothing: set at least one of its keys besides uncalibrated")
        return self

    @model_validator(mode="after")
    def _its_parts_belong_together(self) -> Self:
        if self.guidance_gate is None and self.guidance_gate_rest != "drop":
            raise ValueError("guidance_gate_rest: only with guidance_gate")
        if self.adapter is None and self.adapter_scale != 1.0:
            raise ValueError("adapter_scale: only with adapter")
        if self.guidance_gate is not None and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise ValueError("guidance_gate: not with a guidance_scale of 1 or less, which has one branch only")
        return self


class TiersConfig(ConfigSection):
    """Faster ways of making an image that change pixels, for requests that name one as their `quality`.

    A model with lossy options of its own has no tiers.
    """

    tiers: dict[TierName, TierConfig] = Field(
        {},
        description="What `balanced`, `fast` and `turbo` do: see [Quality](how-to/quality.md). A tier that is left out "
        "is refused, and every model makes `exact`.",
    )


def editor_group(model: str, quality: str, quantization: str) -> str:
    """The name of the editors that make a model's images of this quality: the model's id, or those of a tier alone.

    `quantization` is that of the image's plan. The deployment of the editors is `Editor-<name>`.
    """
    if quality in TIER_NAMES and quantization != "none":
        return f"{model}-{quality}"
    return model
