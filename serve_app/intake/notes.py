"""What the sender of a request may not have meant: sentences that explain and result tell alike. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from serve_app.config import AUTO
from serve_app.images.decode import ImageFacts
from serve_app.intake.plan import TRIGGER, is_guided, trained_trigger
from serve_app.models.profile import PROFILES
from serve_app.models.prompt_tokens import PromptTokens
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas import InferenceRequest
from serve_app.tasks import AdapterUse, EditPlan

# Sentences of one kind; a request of 5,000 prompts would repeat each of them as often.
MAX_OF_A_KIND = 20

# How far the aspect of a result may be from its control image's before that is told. Flooring the sides to a multiple
# of 32 alone seldom changes it by as much.
MAX_STRETCH = 1.02
# What another aspect does, by the model's family: an edit model gets its control image resized to the result's size, an
# edit-plus model gets each in its own shape (docs/parity.md, rows 4 and 5).
STRETCHES = {
    "edit": "the control image is stretched to the result's shape before it is edited",
    "edit_plus": "the model sees the control image in its own shape, and what it shows may come out stretched or cut",
}


@dataclass(frozen=True)
class Noted:
    """A request with all that was found out about it. `images` are the facts of its control images, by sha256."""

    request: InferenceRequest
    spec: ModelSpec
    plans: Sequence[EditPlan]
    images: Mapping[str, ImageFacts]
    adapters: Sequence[AdapterUse]
    prompts: PromptTokens


def notes_about(noted: Noted) -> list[str]:
    """Every note, kind by kind."""
    kinds = (
        exif_notes(noted.plans, noted.images),
        stretch_notes(noted.plans, noted.images),
        trigger_notes(noted.request, noted.adapters),
        receipt_notes(noted.adapters),
        dropped_image_notes(noted.request, noted.spec),
        unused_neg_notes(noted.request, noted.spec),
        cut_notes(noted.plans, noted.spec, noted.prompts),
    )
    return list(chain.from_iterable(map(_few, kinds)))


def _few(notes: list[str]) -> list[str]:
    left = len(notes) - MAX_OF_A_KIND
    return [*notes[:MAX_OF_A_KIND], f"and the same of {left} more"] if left > 0 else notes


def exif_notes(plans: Sequence[EditPlan], images: Mapping[str, ImageFacts]) -> list[str]:
    """A sentence for each control image (by sha256) whose EXIF rotation is not obeyed."""
    return [
        f"control image {number} of prompt {index} has EXIF orientation {images[sha256].exif_orientation}, which is "
        "ignored as the trainer does; send exif: apply to have it turned"
        for index, edit in enumerate(plans)
        for number, sha256 in enumerate(edit.control_images, start=1)
        if edit.exif == "ignore" and images[sha256].exif_orientation
    ]


def stretch_notes(plans: Sequence[EditPlan], images: Mapping[str, ImageFacts]) -> list[str]:
    """A sentence for each image whose shape is not that of its first control image (by sha256).

    Of several control images the first one is usually what is edited; the others show what goes into it.
    """
    notes = []
    for index, edit in enumerate(plans):
        if not edit.control_images:
            continue
        width, height = images[edit.control_images[0]].size
        ratio = (edit.width * height) / (edit.height * width)
        if max(ratio, 1 / ratio) > MAX_STRETCH:
            shapes = (
                f"the control image of prompt {index} is {width}x{height} and the result {edit.width}x{edit.height}"
            )
            notes.append(f"{shapes}: {STRETCHES[MODELS[edit.model].family]}; set width and height to its aspect")
    return notes


def trigger_notes(request: InferenceRequest, adapters: Sequence[AdapterUse]) -> list[str]:
    """A sentence for each prompt whose `[trigger]` stays as it is."""
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


def dropped_image_notes(request: InferenceRequest, spec: ModelSpec) -> list[str]:
    """A sentence for each prompt whose `ctrl_img` is dropped."""
    return [
        f"ctrl_img of prompt {index} is not used, since ctrl_img_1, ctrl_img_2 or ctrl_img_3 is set"
        for index, prompt in enumerate(request.prompts)
        if spec.requires_control_image and prompt.ctrl_img and prompt.numbered_images
    ]


def unused_neg_notes(request: InferenceRequest, spec: ModelSpec) -> list[str]:
    """A sentence for each negative prompt that no forward reads."""
    return [
        f"neg of prompt {index} is not used, since guidance_scale {prompt.guidance_scale:g} is not above 1"
        for index, prompt in enumerate(request.prompts)
        if prompt.neg and prompt.guidance_scale is not None and not is_guided(prompt, spec)
    ]


def cut_notes(plans: Sequence[EditPlan], spec: ModelSpec, prompts: PromptTokens) -> list[str]:
    """A sentence for each text of which a text-to-image model reads the beginning alone."""
    return [
        note
        for index, plan in enumerate(plans)
        for name, text in _texts_read(plan)
        if (note := _cut_note(f"{name} of prompt {index}", text, plan, spec, prompts))
    ]


def _texts_read(plan: EditPlan) -> Iterable[tuple[str, str]]:
    yield "prompt", plan.prompt
    if plan.guidance_scale > 1:
        yield "neg", plan.negative_prompt


def _cut_note(name: str, text: str, plan: EditPlan, spec: ModelSpec, prompts: PromptTokens) -> str | None:
    recipe = make_recipe(spec, PROFILES[plan.profile], plan, [])
    cut = prompts.truncation(text, recipe)
    if cut is None:
        return None
    about, source = ("", "") if cut.is_exact else ("about ", ", by an estimate from its length")
    return (
        f"{name} has {about}{cut.tokens} tokens, of which {spec.id} reads {recipe.max_prompt_tokens} at most: the last "
        f"{about}{cut.lost} of its {cut.words} words are not read{source}"
    )


def receipt_notes(adapters: Sequence[AdapterUse]) -> list[str]:
    """What the adapters' files say that is not obeyed, or that their owners may not have meant."""
    return [note for use in adapters if use.receipt for note in use.receipt.notes]
