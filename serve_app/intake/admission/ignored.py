"""Fields of a request that have no effect for its model, and why. Pure."""

from itertools import islice

from serve_app.intake.admission.parts import PART, Parts
from serve_app.intake.admission.plan import SAMPLER_NAMES, effective_guidance
from serve_app.models.registry import ModelSpec
from serve_app.schemas.requests import InferenceRequest, Prompt

# How many unknown fields an answer names, and how many characters of each name.
MAX_NAMES, MAX_NAME_CHARS = 20, 60


def ignored_fields(request: InferenceRequest, spec: ModelSpec) -> list[str]:
    """The fields that were sent and have no effect: not used by the model, misspelt, or at the wrong level."""
    unused = ["num_frames", "fps"]
    if not spec.requires_control_image:
        unused += ["ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]
    prompts = request.prompts
    known = {name for name in unused if any(getattr(prompt, name) is not None for prompt in prompts)}
    if any(prompt.sampler is not None and prompt.sampler not in SAMPLER_NAMES for prompt in prompts):
        known.add("sampler")
    if any(ignores_ctrl_img(prompt, spec) for prompt in prompts):
        known.add("ctrl_img")
    if any(ignores_neg(prompt, spec) for prompt in prompts):
        known.add("neg")
    unknown = {f"prompts[].{name}" for prompt in prompts for name in prompt.model_extra or ()}
    unknown |= {f"loras[].{name}" for lora in request.loras for name in lora.model_extra or ()}
    unknown |= set(request.model_extra or ())
    printable = (name[:MAX_NAME_CHARS] for name in unknown if name.isprintable())
    return sorted(known | set(islice(printable, MAX_NAMES)))


def ignored_parts(request: InferenceRequest, parts: Parts) -> list[str]:
    """The parts of the body that no prompt refers to, as a control image would name them."""
    printable = (name[:MAX_NAME_CHARS] for name in parts.unused(request) if name.isprintable())
    return [PART + name for name in islice(printable, MAX_NAMES)]


def ignores_ctrl_img(prompt: Prompt, spec: ModelSpec) -> bool:
    """Whether `ctrl_img` is ignored, since one of `ctrl_img_1..3` is set."""
    return spec.requires_control_image and bool(prompt.ctrl_img and prompt.numbered_images)


def ignores_neg(prompt: Prompt, spec: ModelSpec) -> bool:
    """Whether there is a negative prompt and the model never reads it."""
    return bool(prompt.neg) and effective_guidance(prompt, spec) <= 1
