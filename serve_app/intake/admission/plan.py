"""From a request to plans: the effective value of everything that decides the pixels of its images. Pure."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from serve_app.config import AUTO, AppConfig, ModelConfig, SamplerName
from serve_app.errors import InvalidParameter
from serve_app.images.decode import ImageFacts
from serve_app.images.sizes import INPUT_SIZE, Size, read_size, size_like, snap
from serve_app.intake.admission.quality import Quality, check_profile, quality_without_tier
from serve_app.models.profile import PROFILES, Profile, profile_of_trainer
from serve_app.models.recipe import SAMPLERS, Recipe, make_recipe
from serve_app.models.registry import ModelSpec
from serve_app.schemas.requests import InferenceRequest, Prompt
from serve_app.tasks import AdapterUse, EditPlan

T = TypeVar("T")

DEFAULT_SEED = 42
SAMPLER_NAMES: dict[str, SamplerName] = {name: name for name in SAMPLERS}
TRIGGER = "[trigger]"


@dataclass(frozen=True)
class PlannedEdit:
    """The plan of one image, the facts of its control images in order, and the recipe that follows from both."""

    plan: EditPlan
    control_images: Sequence[ImageFacts]
    recipe: Recipe

    @property
    def images_by_digest(self) -> dict[str, ImageFacts]:
        """The facts of its control images, by sha256 (hex)."""
        return dict(zip(self.plan.control_images, self.control_images, strict=True))


def plan_edits(
    request: InferenceRequest,
    spec: ModelSpec,
    config: AppConfig,
    control_images: Mapping[str, str],
    adapters: Sequence[AdapterUse],
    sizes: Mapping[str, Size],
    draw_seed: Callable[[], int] = lambda: secrets.randbelow(2**32),
    quality: Quality | None = None,
) -> list[EditPlan]:
    """One plan per prompt. `control_images` maps a client's image string to its sha256 (hex), `sizes` that to pixels.

    `quality` is what was chosen; the request already has the tier's fields. None: no tier. Raises InvalidParameter if
    the profile promises the trainer's pixels and the model's config changes them, QualityUnavailable if a tier does.
    """
    model = config.served(spec.id)
    quality = quality or quality_without_tier(request, model)
    profile, why_profile = _choose_profile(request, config, adapters)
    check_profile(request, model, quality, profile.name)
    if model.lossy and profile.name != "reference":
        raise InvalidParameter(
            f"profile: {profile.name} promises the trainer's own pixels, and this service runs {spec.id} with "
            f"{model.lossy}",
            {"parameter": "profile"},
        )
    planner = _Planner(request, spec, model, quality, profile, why_profile, control_images, adapters, sizes, draw_seed)
    return [planner.plan(index, prompt) for index, prompt in enumerate(request.prompts)]


def add_recipes(
    plans: Sequence[EditPlan], spec: ModelSpec, control_images: Mapping[str, ImageFacts]
) -> list[PlannedEdit]:
    """Each plan with its recipe. `control_images` are by sha256 (hex)."""
    edits = []
    for plan in plans:
        images = [control_images[sha256] for sha256 in plan.control_images]
        recipe = make_recipe(spec, PROFILES[plan.profile], plan, [image.size for image in images])
        edits.append(PlannedEdit(plan, images, recipe))
    return edits


@dataclass(frozen=True)
class _Planner:
    """What is the same for all images of a request."""

    request: InferenceRequest
    spec: ModelSpec
    model: ModelConfig
    quality: Quality
    profile: Profile
    why_profile: str
    control_images: Mapping[str, str]
    adapters: Sequence[AdapterUse]
    sizes: Mapping[str, Size]
    draw_seed: Callable[[], int]

    def plan(self, index: int, prompt: Prompt) -> EditPlan:
        """The plan for the prompt number `index`, from 0."""
        request, spec, model, quality = self.request, self.spec, self.model, self.quality
        # A model with tiers has no such options of its own.
        tier, guidance_scale = quality.tier, effective_guidance(prompt, spec)
        lossy = tier or model
        divisor = divisor_of(spec, self.profile)
        seed, why_seed = _choose_seed(prompt, index, self.draw_seed)
        # Without control images, as for a text-to-image model, those that a prompt names are ignored.
        named = prompt.control_images if self.control_images else []
        images = tuple(self.control_images[image] for image in named)
        (width, height), why_size = self._choose_size(prompt, images)
        return EditPlan(
            model=spec.id,
            profile=self.profile.name,
            prompt=fill_trigger(prompt, request.trigger_word, self.adapters),
            negative_prompt=prompt.neg or "",
            width=snap(width, divisor),
            height=snap(height, divisor),
            steps=default(prompt.sample_steps, spec.default_steps),
            guidance_scale=guidance_scale,
            seed=seed,
            output_format=request.output_format,
            control_images=images,
            adapters=(*quality.adapters, *self.adapters),
            exif=request.exif,
            vae_tiling=request.vae_tiling or model.vae_tiling,
            quantization=lossy.quantization,
            feature_cache=lossy.feature_cache,
            quality=quality.name,
            # With one branch only there is nothing to leave out.
            guidance_gate=tier.guidance_gate if tier and guidance_scale > 1 else None,
            guidance_gate_rest=tier.guidance_gate_rest if tier and guidance_scale > 1 else "drop",
            loss=quality.loss,
            preset=request.preset,
            sampler=SAMPLER_NAMES.get(prompt.sampler or "", "flowmatch"),
            why={
                "size": f"{width}x{height} ({why_size}), each side floored to a multiple of {divisor}",
                "seed": why_seed,
                "profile": self.why_profile,
                "quality": quality.why,
            },
        )

    def _choose_size(self, prompt: Prompt, images: Sequence[str]) -> tuple[Size, str]:
        """The size before it is floored, and why. `images` are the digests of the prompt's control images."""
        spec = self.spec
        if prompt.size == INPUT_SIZE and images:
            image = self.sizes[images[0]]
            return size_like(image), f"input: the control image's aspect, {image[0]}:{image[1]}, at about 1 MP"
        if prompt.size is not None and prompt.size != INPUT_SIZE:
            return read_size(prompt.size), "asked for"
        asked = "asked for" if prompt.width or prompt.height else "the model's default"
        return (default(prompt.width, spec.default_width), default(prompt.height, spec.default_height)), asked


def divisor_of(spec: ModelSpec, profile: Profile) -> int:
    """The number of pixels to whose multiples the sides of a result are floored."""
    return profile.text_to_image_divisor if spec.family == "text_to_image" else spec.resolution_divisor


def effective_guidance(prompt: Prompt, spec: ModelSpec) -> float:
    """The guidance scale of a prompt. The negative prompt is used only above 1: see `Recipe.guided`."""
    return default(prompt.guidance_scale, spec.default_guidance_scale)


def fill_trigger(prompt: Prompt, trigger_word: str | None, adapters: Sequence[AdapterUse]) -> str:
    """The prompt with `[trigger]` replaced by its own trigger word, or else the request's.

    The word `auto` means the one that an adapter's file names. Without a word the prompt stays as it is.
    """
    word = prompt.trigger_word or trigger_word
    if word == AUTO:
        word, _ = trained_trigger(adapters)
    return prompt.prompt.replace(TRIGGER, word) if word else prompt.prompt


def trained_trigger(adapters: Sequence[AdapterUse]) -> tuple[str | None, str | None]:
    """The first trigger word that an adapter's file names, and that adapter's path."""
    found = ((use.receipt.trigger_word, use.path) for use in adapters if use.receipt and use.receipt.trigger_word)
    return next(found, (None, None))


def default(value: T | None, otherwise: T) -> T:
    """`value`, or `otherwise` if it was not sent."""
    return otherwise if value is None else value


def _choose_profile(
    request: InferenceRequest, config: AppConfig, adapters: Sequence[AdapterUse]
) -> tuple[Profile, str]:
    """The effective profile, and why."""
    name = request.profile or config.preview_profile
    if name == AUTO:
        receipts = [use.receipt for use in adapters if use.receipt]
        return profile_of_trainer([r.trainer_version for r in receipts if r.trainer == "ai-toolkit"])
    return PROFILES[name], "asked for" if request.profile else "the service's default"


def _choose_seed(prompt: Prompt, index: int, draw_seed: Callable[[], int]) -> tuple[int, str]:
    """The effective seed, and why."""
    if prompt.seed is None:
        return DEFAULT_SEED + index, f"default: {DEFAULT_SEED} + the prompt's index"
    if prompt.seed == -1:
        return draw_seed(), "drawn by the service, since -1 was asked for"
    return prompt.seed, "asked for"
