"""Quality: whether a request may have the tier that it asks for, and what the tier makes of the request.

Never a silent exact, and never a silent loss: a tier that is not available is refused, with the reason.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from serve_app.config import TIER_NAMES, AppConfig, ModelConfig, QualityName, TierConfig, TierName
from serve_app.errors import (
    FilesGone,
    LoraDownloadFailed,
    QualityUnavailable,
    RequestError,
    ServiceUnavailable,
    StorageFailed,
)
from serve_app.jobs.calibrations import Calibration
from serve_app.schemas.requests import InferenceRequest, Lora, MaxLoss
from serve_app.tasks import LOSSY, AdapterUse, Loss

logger = logging.getLogger(__name__)

# The pixels of the model itself.
EXACT: QualityName = "exact"
# The fields of a prompt that a tier may fix, and the tier's keys for them.
TIER_FIELDS = {"sample_steps": "steps", "guidance_scale": "guidance_scale", "sampler": "sampler"}


class Losses(Protocol):
    """Where measured losses are looked up."""

    async def find(
        self, model: ModelConfig, tier: TierName, tier_digest: str, adapters: Collection[str]
    ) -> Calibration | None:
        """What was measured of the tier, for the checkpoint of `model` and exactly this set of adapters' ids.

        `tier_digest` is `TierConfig.digest`, so a tier that was changed since is not measured. None if nobody has
        measured it. Raises StoreUnavailable.
        """
        ...


@dataclass(frozen=True)
class Quality:
    """The quality that a request gets.

    `name` is exact, the name of a tier, or lossy. `tier` are the tier's settings, and `adapters` is its LoRA, if it has
    one. `why` explains the quality to a person. `measured` are the details of the loss: see `details_of` of
    calibrations. `replaced` is the tier that `max_loss` has made exact.
    """

    name: str
    why: str
    tier: TierConfig | None = None
    adapters: tuple[AdapterUse, ...] = ()
    loss: Loss | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    replaced: TierConfig | None = None

    def notes(self, scales: Iterable[float]) -> list[str]:
        """What the sender should know of the tier. `scales` are the guidance scales of the request's prompts."""
        if self.tier is None:
            return [self.why] if self.replaced is not None else []
        notes = []
        if self.loss is None:
            notes.append(f"quality {self.name}: nobody has measured its loss for these LoRAs")
        notes += [f"quality {self.name} applies {use.path!r} under the LoRAs of the request" for use in self.adapters]
        if self.tier.guidance_gate is not None and any(scale <= 1 for scale in scales):
            notes.append(
                f"quality {self.name}: its guidance_gate has no effect on prompts whose guidance_scale is not above 1"
            )
        return notes


# Finds the LoRA of a tier. Raises RequestError.
FindAdapter = Callable[[Lora], Awaitable[AdapterUse]]


class Qualities:
    """Decides which quality a request gets."""

    def __init__(self, config: AppConfig, losses: Losses) -> None:
        self._config = config
        self._losses = losses

    async def choose(
        self,
        request: InferenceRequest,
        adapters: Sequence[AdapterUse],
        find_adapter: FindAdapter,
        *,
        calibrates: bool = False,
    ) -> Quality:
        """The quality of a request that passed `check_quality`, with these LoRAs.

        With `calibrates`, the request is made to measure the tier, so the loss need not be known. Raises
        QualityUnavailable, ServiceUnavailable, StoreUnavailable or Overloaded.
        """
        model = self._config.served(request.model)
        tier = tier_of(request, model)
        if tier is None:
            return quality_without_tier(request, model)
        name: TierName = next(name for name in TIER_NAMES if name == request.quality)
        of_tier = await self._adapters_of(request, tier, find_adapter)
        digest = tier.digest(of_tier[0].id if of_tier else None)
        ids = [use.id for use in adapters]
        # A file that has not been read yet, as in the check of a preset, has no id.
        are_known = all([*ids, *(use.id for use in of_tier)])
        found = await self._losses.find(model, name, digest, frozenset(ids)) if are_known else None
        loss = found.loss if found else None
        reason = too_lossy(loss, request.max_loss) if are_known and not calibrates else None
        if reason is not None:
            why = f"exact instead of {name}: {reason}{_left_out(request, tier)}"
            return Quality(EXACT, why, replaced=tier)
        if loss is None and are_known and tier.uncalibrated == "refuse" and not calibrates:
            of_what = "these LoRAs" if adapters else f"{model.id} without LoRAs"
            raise unavailable(
                request,
                model,
                f"nobody has measured its loss for {of_what}; ask your operator for "
                "edits-server calibrate, or send max_loss to have exact images until then",
            )
        measured = f"its loss was measured on {loss.on}" if loss else "its loss was not measured for these LoRAs"
        return Quality(name, f"asked for; {measured}", tier, of_tier, loss, found.details if found else {})

    async def _adapters_of(
        self, request: InferenceRequest, tier: TierConfig, find_adapter: FindAdapter
    ) -> tuple[AdapterUse, ...]:
        """The tier's LoRA. That it cannot be used is no fault of the sender.

        Raises QualityUnavailable, or ServiceUnavailable if it may be there a little later.
        """
        if tier.adapter is None:
            return ()
        name, model = request.quality, self._config.served(request.model)
        try:
            use = await find_adapter(Lora(path=tier.adapter, network_multiplier=tier.adapter_scale))
            return (replace(use, of_tier=True),)
        except FilesGone:
            # The admission of the request is repeated.
            raise
        except (LoraDownloadFailed, StorageFailed) as error:
            # The path is the operator's, so that only the log has it.
            logger.warning("the LoRA of the tier %s of %s cannot be fetched: %s", name, model.id, error.message)
            raise ServiceUnavailable(
                f"the LoRA of quality {name} cannot be fetched at the moment; try again"
            ) from error
        except RequestError as error:
            reason = f"its LoRA cannot be used: {error.message}"
            raise unavailable(request, model, reason) from error


def too_lossy(loss: Loss | None, most: MaxLoss | None) -> str | None:
    """Why a tier loses more than a request accepts, None if it does not. One that was not measured does."""
    if most is None:
        return None
    if loss is None:
        return "nobody has measured its loss for these LoRAs"
    for name, worst, least in (("PSNR", loss.psnr_db.worst, most.psnr_db), ("SSIM", loss.ssim.worst, most.ssim)):
        # None stands for equal images.
        if least is not None and worst is not None and worst < least:
            return f"the worst {name} that was measured is {worst:.4g}, and max_loss asks for {least:.4g}"
    return None


def quality_without_tier(request: InferenceRequest, model: ModelConfig) -> Quality:
    """The quality of a request that asks for no tier."""
    if model.lossy:
        return Quality(LOSSY, f"this service runs {model.id} with {model.lossy}")
    return Quality(EXACT, "asked for" if "quality" in request.model_fields_set else "the default")


def available(model: ModelConfig) -> list[str]:
    """The qualities that requests for a model may name, the most exact first; none if it has lossy options."""
    return [] if model.lossy else [EXACT, *(name for name in TIER_NAMES if name in model.tiers)]


def unavailable(
    request: InferenceRequest, model: ModelConfig, reason: str, details: Mapping[str, Any] = {}
) -> QualityUnavailable:
    """The error for a request that cannot have its quality, for this reason."""
    facts = {"quality": request.quality, "available": available(model), **details}
    return QualityUnavailable(f"quality {request.quality} is not available: {reason}", facts)


def tier_of(request: InferenceRequest, model: ModelConfig) -> TierConfig | None:
    """The tier that a request asks for, None if it asks for none. Raises QualityUnavailable."""
    is_sent = "quality" in request.model_fields_set
    if model.lossy and is_sent:
        reason = f"this service runs {model.id} with {model.lossy}; leave out quality to accept what that changes"
        raise unavailable(request, model, reason)
    if request.quality == EXACT:
        return None
    if request.quality not in model.tiers:
        raise unavailable(request, model, f"{model.id} has {', '.join(available(model))} here")
    return model.tiers[request.quality]


def check_quality(request: InferenceRequest, model: ModelConfig) -> None:
    """Raise QualityUnavailable for a tier that is not configured, or that contradicts a field of the request.

    A tier's own steps, guidance and sampler are part of what was measured: with others it would be another tier.
    """
    tier = tier_of(request, model)
    if tier is None:
        return
    for index, prompt in enumerate(request.prompts):
        for name, value in fixed_fields(tier).items():
            sent = getattr(prompt, name)
            if sent is not None and sent != value:
                reason = f"it makes images with {name} {value}, and prompt {index} has {sent}: leave that out"
                raise unavailable(request, model, reason, {"prompt_index": index, "parameter": name})


def check_profile(request: InferenceRequest, model: ModelConfig, quality: Quality, profile: str) -> None:
    """Raise QualityUnavailable for a tier with a profile of a trainer."""
    if quality.tier is not None and profile != "reference":
        reason = f"the profile {profile} promises the trainer's own pixels, so it takes {EXACT} only"
        raise unavailable(request, model, reason, {"parameter": "profile"})


def with_tier(request: InferenceRequest, quality: Quality) -> InferenceRequest:
    """A request that passed `check_quality`, with the steps, the guidance and the sampler of its tier.

    If `max_loss` has made the tier exact, the request is without them: exact images have the model's own.
    """
    if quality.replaced is not None:
        changes: dict[str, Any] = dict.fromkeys(fixed_fields(quality.replaced))
    else:
        changes = fixed_fields(quality.tier) if quality.tier is not None else {}
    if not changes:
        return request
    return request.model_copy(update={"prompts": [prompt.model_copy(update=changes) for prompt in request.prompts]})


def fixed_fields(tier: TierConfig) -> dict[str, Any]:
    """The fields of a prompt that a tier fixes, with its values."""
    values = {field: getattr(tier, key) for field, key in TIER_FIELDS.items()}
    return {field: value for field, value in values.items() if value is not None}


def _left_out(request: InferenceRequest, tier: TierConfig) -> str:
    """That a request loses the fields that its tier fixes, as the end of a sentence; "" if it has none of them."""
    prompts = request.prompts
    sent = [name for name in fixed_fields(tier) if any(getattr(prompt, name) is not None for prompt in prompts)]
    return f"; the tier's {', '.join(sent)} do not count for exact images and were left out" if sent else ""
