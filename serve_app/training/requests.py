"""A training job's samples as requests of this service: the body that makes the same image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from serve_app.models.registry import MODELS, ModelSpec
from serve_app.training.folders import TrainingJob
from serve_app.training.samples import Sample

MAX_SEED, MAX_MULTIPLIER = 2**63 - 1, 2.0
# The keys of a prompt that name its control images.
NUMBERED = ("ctrl_img_1", "ctrl_img_2", "ctrl_img_3")


@dataclass(frozen=True)
class NamedLora:
    """The LoRA that a preview is made with, and the strength by which that of the sample is multiplied."""

    path: str
    factor: float = 1.0


def control_paths(sample: Sample, spec: ModelSpec) -> list[str]:
    """The trainer's paths of the control images that the model sees, in order.

    `ctrl_img` counts as `ctrl_img_1` where that is absent. The edit model takes one image: `ctrl_img`, or else the
    first.
    """
    paths = dict(sample.control_images)
    if not spec.requires_control_image:
        return []
    first = paths.get("ctrl_img_1") or paths.get("ctrl_img")
    if spec.max_control_images == 1:
        first = paths.get("ctrl_img") or first
    found = [first, paths.get("ctrl_img_2"), paths.get("ctrl_img_3")]
    return [path for path in found if path][: spec.max_control_images]


def body_of(
    job: TrainingJob, sample: Sample, lora: NamedLora | None, profile: str, images: Sequence[str]
) -> dict[str, Any]:
    """The body of `POST /v1/inference` that makes this sample's image. `images` are its control images, in order.

    The job has a model, and the sample no problem. `images` may be fewer than the sample has.
    """
    settings, model = job.settings, job.model
    assert settings is not None
    assert model is not None
    prompt: dict[str, Any] = {
        "prompt": sample.prompt,
        "neg": sample.negative_prompt,
        "width": sample.width,
        "height": sample.height,
        "seed": sample.seed,
        "guidance_scale": sample.guidance_scale,
        "sample_steps": sample.steps,
    }
    prompt |= dict(zip(NUMBERED, images, strict=False))
    loras = []
    if lora is not None:
        # A strength of -0.0 would be another request.
        loras = [{"path": lora.path, "network_multiplier": sample.network_multiplier * lora.factor + 0.0}]
    body: dict[str, Any] = {"model": model, "loras": loras, "prompts": [prompt], "profile": profile}
    body |= {"output_format": "png", "priority": "bulk"}
    if settings.low_vram:
        body["vae_tiling"] = True
    return body


def why_not(job: TrainingJob, sample: Sample) -> str | None:
    """Why the sample's image cannot be made again, whatever the checkpoint, in a sentence; None if it can."""
    if sample.problem is not None:
        return sample.problem
    if sample.is_random:
        return f"sample {sample.number} has the seed -1: the trainer drew one and wrote it nowhere"
    if not 0 <= sample.seed <= MAX_SEED:
        return f"sample {sample.number} has the seed {sample.seed}, and this service takes 0 to {MAX_SEED}"
    if abs(sample.network_multiplier) > MAX_MULTIPLIER or sample.network_multiplier != sample.network_multiplier:
        return (
            f"sample {sample.number} has the network_multiplier {sample.network_multiplier:g}, and this service takes "
            f"-{MAX_MULTIPLIER:g} to {MAX_MULTIPLIER:g}"
        )
    spec = MODELS[job.model] if job.model else None
    if spec is not None and spec.requires_control_image and not control_paths(sample, spec):
        return f"sample {sample.number} has no control image, and {spec.id} edits one"
    return None


def find_image(path: str, job: str, candidates: Mapping[str, Sequence[str]]) -> str | None:
    """The file below the LoRA root that a path on the training machine means; None if there is none, or no single one.

    `candidates` are paths below the root by file name. Of several with the same name, it is one in the job's folder,
    or else the one that has most of the path's last folders.
    """
    parts = _parts(path)
    found = list(candidates.get(parts[-1], ())) if parts else []
    inside = [each for each in found if each.startswith(f"{job}/")]
    for some in (inside, found):
        likely = _most_alike(parts, some)
        if likely is not None:
            return likely
    return None


def file_name(path: str) -> str:
    """The file's name in a path on the training machine, which may run Windows."""
    parts = _parts(path)
    return parts[-1] if parts else path


def _parts(path: str) -> tuple[str, ...]:
    kind: type[PurePath] = PureWindowsPath if "\\" in path else PurePosixPath
    return kind(path).parts


def _most_alike(parts: Sequence[str], found: Sequence[str]) -> str | None:
    if len(found) < 2:
        return next(iter(found), None)
    lengths = {each: _common_end(parts, PurePosixPath(each).parts) for each in found}
    most = max(lengths.values())
    best = [each for each in found if lengths[each] == most]
    return best[0] if len(best) == 1 else None


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """How many of the last parts are the same."""
    same = 0
    for mine, its in zip(reversed(one), reversed(other), strict=False):
        if mine != its:
            break
        same += 1
    return same
