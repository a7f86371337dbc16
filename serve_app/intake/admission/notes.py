"""Notes: sentences about what the sender of a request may not have meant. Explanations and results carry them. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from serve_app.config import AUTO, TierConfig
from serve_app.images.sizes import INPUT_SIZE, MAX_SIDE, MIN_SIDE
from serve_app.intake.admission.ignored import ignores_ctrl_img, ignores_neg
from serve_app.intake.admission.plan import TRIGGER, PlannedEdit, effective_guidance, trained_trigger
from serve_app.intake.admission.quality import Quality
from serve_app.models.prompt_tokens import PromptTokens
from serve_app.models.recipe import Recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas.requests import InferenceRequest
from serve_app.tasks import AdapterUse, EditPlan

# How many notes of one kind are given: a request of 5,000 prompts would repeat each as often.
MAX_OF_A_KIND = 20

# How many measured values a note names.
MAX_LISTED = 5
# By what factor the aspect ratio of a result may differ from its control image's without a note. Flooring the sides to
# a multiple of 32 alone seldom changes it by as much.
MAX_STRETCH = 1.02
# What keeps `size: input` from having the exact aspect: see `size_like`.
NEAREST_SIDES = f"its sides are multiples of 32, from {MIN_SIDE} to {MAX_SIDE}"
# What another aspect ratio does, by the model's family: an edit model gets its control image resized to the result's
# size, an edit-plus model gets each in its own shape (docs/parity.md, rows 4 and 5).
STRETCHES = {
    "edit": "it will be stretched",
    "edit_plus": "it may come out stretched or cut",
}


def notes_about(
    request: InferenceRequest,
    spec: ModelSpec,
    edits: Sequence[PlannedEdit],
    adapters: Sequence[AdapterUse],
    prompts: PromptTokens,
    quality: Quality,
) -> list[str]:
    """Every note on a request, kind by kind."""
    kinds = (
        quality.notes(edit.plan.guidance_scale for edit in edits),
        limit_notes(request, quality),
        unmeasured_notes([edit.plan for edit in edits], quality),
        exif_notes(edits),
        stretch_notes(request, edits),
        trigger_notes(request, adapters),
        receipt_notes(adapters),
        ignored_image_notes(request, spec),
        ignored_neg_notes(request, spec),
        cut_notes(edits, spec, prompts),
    )
    return list(chain.from_iterable(map(_shortened, kinds)))


def _shortened(notes: list[str]) -> list[str]:
    left = len(notes) - MAX_OF_A_KIND
    if left <= 0:
        return notes
    return [*notes[:MAX_OF_A_KIND], f"and the same of {left} more"]


def limit_notes(request: InferenceRequest, quality: Quality) -> list[str]:
    """That `max_loss` has no effect, if the request asks for no tier."""
    if request.max_loss is None or quality.tier is not None or quality.replaced is not None:
        return []
    return ["max_loss has no effect, since the request asks for no tier: send quality, too"]


def unmeasured_notes(plans: Sequence[EditPlan], quality: Quality) -> list[str]:
    """A sentence for each way in which images of a tier differ from those that its loss was measured on."""
    tier, measured = quality.tier, quality.measured
    if tier is None or not measured:
        return []
    others = []
    if not {f"{plan.width}x{plan.height}" for plan in plans} <= set(measured["sizes"]):
        others.append(f"the size {listed(measured['sizes'])}")
    strengths = {lora["id"]: lora["network_multiplier"] for lora in measured["adapters"]}
    own = {use.id: use for plan in plans for use in plan.adapters if not use.of_tier}
    others += [
        f"network_multiplier {strengths[use.id]:g} of {use.path!r}"
        for use in own.values()
        if use.id in strengths and use.scale != strengths[use.id]
    ]
    with_others = [f"its loss was measured with {each}; other values may lose more" for each in others]
    return [f"quality {quality.name}: {each}" for each in [*_exact_notes(plans, tier, measured), *with_others]]


def _exact_notes(plans: Sequence[EditPlan], tier: TierConfig, measured: Mapping[str, Any]) -> Iterable[str]:
    """How the exact images of a request would differ from those that the tier was compared with.

    Where the tier fixes the steps or the guidance, exact images have the model's own: see `with_tier`.
    """
    spec = MODELS[plans[0].model]
    steps = {plan.steps for plan in plans} if tier.steps is None else {spec.default_steps}
    scales = {plan.guidance_scale for plan in plans} if tier.guidance_scale is None else {spec.default_guidance_scale}
    # Rows of earlier versions do not have the guidance.
    of_exact = (("sample_steps", steps, measured["steps"]), ("guidance_scale", scales, measured.get("guidance_scales")))
    for name, own, compared in of_exact:
        if not compared:
            yield f"it is unknown which {name} the exact images had when its loss was measured"
        elif not own <= set(compared):
            yield (
                f"its loss was measured against exact images with {name} {listed(compared)}; those of this request "
                f"would have {listed(sorted(own))}, so it may lose more"
            )


def listed(values: Sequence[float | str]) -> str:
    """Measured values in words, as many as a note can name."""
    more = [f"{len(values) - MAX_LISTED} more"] if len(values) > MAX_LISTED else []
    named = [each if isinstance(each, str) else f"{each:g}" for each in values[:MAX_LISTED]]
    return " or ".join([*named, *more])


def exif_notes(edits: Sequence[PlannedEdit]) -> list[str]:
    """A sentence for each control image whose EXIF rotation is ignored."""
    return [
        f"control image {number} of prompt {index} has EXIF orientation {image.exif_orientation}, which is "
        "ignored as the trainer does; send exif: apply to have it turned"
        for index, edit in enumerate(edits)
        for number, image in enumerate(edit.control_images, start=1)
        if edit.plan.exif == "ignore" and image.exif_orientation
    ]


def stretch_notes(request: InferenceRequest, edits: Sequence[PlannedEdit]) -> list[str]:
    """A sentence for each result whose aspect ratio is not that of its first control image.

    Of several control images the first one is usually what is edited; the others show what goes into it.
    """
    notes = []
    for index, (prompt, edit) in enumerate(zip(request.prompts, edits, strict=True)):
        if not edit.control_images:
            continue
        plan, (width, height) = edit.plan, edit.control_images[0].size
        ratio = (plan.width * height) / (plan.height * width)
        if max(ratio, 1 / ratio) > MAX_STRETCH:
            shapes = f"the control image is {width}x{height}, the result {plan.width}x{plan.height}"
            effect = STRETCHES[MODELS[plan.model].family]
            is_nearest = prompt.size == INPUT_SIZE
            advice = f", since {NEAREST_SIDES}" if is_nearest else f"; use size: {INPUT_SIZE}"
            notes.append(f"prompt {index}: {shapes}: {effect}{advice}")
    return notes


def trigger_notes(request: InferenceRequest, adapters: Sequence[AdapterUse]) -> list[str]:
    """A sentence for each prompt whose `[trigger]` is not replaced."""
    trained, path = trained_trigger(adapters)
    notes = []
    for index, prompt in enumerate(request.prompts):
        word = prompt.trigger_word or request.trigger_word
        if TRIGGER not in prompt.prompt or (word and word != AUTO) or (word == AUTO and trained):
            continue
        if trained:
            notes.append(
                f"prompt {index} says {TRIGGER} and the request has no trigger_word; {path!r} was trained with "
                f"{trained!r}: send trigger_word: auto to use it"
            )
        elif word == AUTO:
            notes.append(f"prompt {index} says {TRIGGER} and trigger_word is auto, but no adapter's file names a word")
    return notes


def ignored_image_notes(request: InferenceRequest, spec: ModelSpec) -> list[str]:
    """A sentence for each prompt whose `ctrl_img` is ignored."""
    return [
        f"ctrl_img of prompt {index} is not used, since ctrl_img_1, ctrl_img_2 or ctrl_img_3 is set"
        for index, prompt in enumerate(request.prompts)
        if ignores_ctrl_img(prompt, spec)
    ]


def ignored_neg_notes(request: InferenceRequest, spec: ModelSpec) -> list[str]:
    """A sentence for each negative prompt that the model never reads."""
    return [
        f"neg of prompt {index} is not used, since guidance_scale {effective_guidance(prompt, spec):g} is not above 1"
        for index, prompt in enumerate(request.prompts)
        if ignores_neg(prompt, spec)
    ]


def cut_notes(edits: Sequence[PlannedEdit], spec: ModelSpec, prompts: PromptTokens) -> list[str]:
    """A sentence for each text of which a text-to-image model reads only the beginning."""
    return [
        note
        for index, edit in enumerate(edits)
        for name, text in _texts_read(edit)
        if (note := _cut_note(f"{name} of prompt {index}", text, edit.recipe, spec, prompts))
    ]


def _texts_read(edit: PlannedEdit) -> Iterable[tuple[str, str]]:
    yield "prompt", edit.plan.prompt
    if edit.recipe.guided:
        yield "neg", edit.plan.negative_prompt


def _cut_note(name: str, text: str, recipe: Recipe, spec: ModelSpec, prompts: PromptTokens) -> str | None:
    cut = prompts.truncation(text, recipe)
    if cut is None:
        return None
    about, source = ("", "") if cut.is_exact else ("about ", ", by an estimate from its length")
    return (
        f"{name} has {about}{cut.tokens} tokens, of which {spec.id} reads {recipe.max_prompt_tokens} at most: the last "
        f"{about}{cut.lost} of its {cut.words} words are not read{source}"
    )


def receipt_notes(adapters: Sequence[AdapterUse]) -> list[str]:
    """What the adapters' files say that has no effect, or that their owners may not have meant."""
    return [note for use in adapters if use.receipt for note in use.receipt.notes]
