"""The axes of a sweep: what a client sends becomes the values of each axis, and the requests of their cells."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf
from pathlib import PurePosixPath
from typing import Any, TypeVar

from serve_app.errors import InvalidParameter, LoraNotFound
from serve_app.intake.admission.plan import DEFAULT_SEED
from serve_app.jobs.sweeps.records import Axes
from serve_app.models.repeat_request import STORED_IMAGE, without_url_secrets
from serve_app.policy.path_patterns import WILDCARDS, compiled
from serve_app.policy.sweep_order import Lengths
from serve_app.schemas.requests import InferenceRequest, Lora, Prompt
from serve_app.schemas.sweeps import CheckpointRange, SweepAxes
from serve_app.training.file_names import step_of
from serve_app.training.folders import TrainingJob

T = TypeVar("T")

IMAGE_FIELDS = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")


@dataclass(frozen=True)
class Files:
    """The files that values of the axis `checkpoints` stand for, by pattern, and the training `jobs` that are named.

    `unfinished` are files of these jobs that are still being written: a range leaves them out.
    """

    by_pattern: Mapping[str, Sequence[str]] = field(default_factory=dict)
    jobs: Mapping[str, TrainingJob] = field(default_factory=dict)
    unfinished: frozenset[str] = frozenset()

    @property
    def notes(self) -> list[str]:
        """What was left out, as sentences."""
        return [f"{path} is still being written, so it was left out" for path in sorted(self.unfinished)]


def step_of_path(path: str | None) -> int | None:
    """The training step that a checkpoint's name ends with; None for a final file, and for other names."""
    return step_of((path or "").rpartition("/")[2])


def by_step(path: str) -> tuple[str, float, str]:
    """The order of checkpoints: by folder, by step, and final files after all steps."""
    step = step_of_path(path)
    return str(PurePosixPath(path).parent), inf if step is None else step, path


def is_pattern(path: str) -> bool:
    return "://" not in path and not WILDCARDS.isdisjoint(path)


def files_of(value: str | CheckpointRange, files: Files) -> Sequence[str]:
    """The paths that a value of the axis `checkpoints` stands for. Raises LoraNotFound if there are none."""
    if isinstance(value, CheckpointRange):
        job = files.jobs[value.training_job]
        between = job.between(value.from_step, value.to_step)
        found = [checkpoint.path for checkpoint in between if checkpoint.path not in files.unfinished]
        if not found:
            raise LoraNotFound(
                f"the training job {job.name!r} has no checkpoint in this range of steps; GET /v1/training-jobs/"
                f"{job.name} lists those that it has",
                {"training_job": job.name},
            )
        return found
    if value not in files.by_pattern:
        return [value]
    return files.by_pattern[value]


def matching(pattern: str, paths: Sequence[str]) -> list[str]:
    """The paths that fit a pattern, by step. Raises InvalidParameter for one that is none, and LoraNotFound."""
    try:
        wanted = compiled(pattern)
    except ValueError as error:
        raise InvalidParameter(f"axes.checkpoints: {error}", {"parameter": "checkpoints"}) from error
    found = sorted((path for path in paths if wanted.fullmatch(path)), key=by_step)
    if not found:
        raise LoraNotFound(
            f"no file below the LoRA root fits the pattern {pattern!r}; GET /v1/loras lists them",
            {"lora_path": pattern},
        )
    return found


def with_quality(base: InferenceRequest, sent: SweepAxes) -> InferenceRequest:
    """The base, which has sent a quality if the axis `qualities` was sent."""
    return base if sent.qualities is None else base.model_copy(update={"quality": sent.qualities[0]})


def lengths_of(sent: SweepAxes) -> Lengths:
    """How many values each axis has at least: a pattern counts once. For a limit before anything is looked up."""
    with_lora = [value is not None for value in sent.checkpoints or [""]]
    names = ("multipliers", "prompts", "seeds", "control_images", "profiles", "qualities")
    return Lengths(with_lora, *(len(getattr(sent, name) or [None]) for name in names))


def check_cells(cells: int, limit: int) -> None:
    """Raise InvalidParameter if a sweep has too many cells."""
    if cells > limit:
        raise InvalidParameter(
            f"the sweep has {cells} cells, and at most {limit} are accepted: leave out values of its axes, or raise "
            "max_cells if that is lower than the service's limit (sweeps.max_cells)",
            {"parameter": "max_cells", "cells": cells, "max": limit},
        )


def axes_of(base: InferenceRequest, sent: SweepAxes, files: Files) -> Axes:
    """The values of every axis. Raises LoraNotFound and InvalidParameter."""
    [prompt] = base.prompts
    lora = base.loras[0] if base.loras else None
    checkpoints: list[str | None] = [lora.path if lora else None]
    if sent.checkpoints is not None:
        checkpoints = _distinct(
            path for value in sent.checkpoints for path in ([None] if value is None else files_of(value, files))
        )
    seed = DEFAULT_SEED if prompt.seed is None else prompt.seed
    return Axes(
        checkpoints=tuple(checkpoints),
        multipliers=tuple(_distinct(sent.multipliers or [lora.network_multiplier if lora else 1.0])),
        prompts=tuple(_distinct(sent.prompts or [prompt.prompt])),
        seeds=tuple(_distinct(map(_drawn, sent.seeds or [seed]))),
        control_images=tuple(_distinct(map(_images, sent.control_images or [prompt.control_images]))),
        profiles=tuple(_distinct(sent.profiles or [base.profile])),
        qualities=tuple(_distinct(sent.qualities or [base.quality])),
    )


def extended(old: Axes, base: InferenceRequest, sent: SweepAxes, files: Files) -> Axes:
    """The axes with further values at their ends; what a sweep has stays where it is. Raises LoraNotFound."""
    added = axes_of(base, sent, files)
    changes: dict[str, tuple[Any, ...]] = {}
    for name in SweepAxes.model_fields:
        if getattr(sent, name) is not None:
            known = getattr(old, name)
            new = getattr(added, name)
            changes[name] = (*known, *(value for value in new if value not in known))
    # A URL is kept without its secrets.
    stored_paths = set(old.checkpoints)
    if "checkpoints" in changes:
        new = changes["checkpoints"][len(old.checkpoints) :]
        changes["checkpoints"] = (*old.checkpoints, *(path for path in new if as_stored(path) not in stored_paths))
    return replace(old, **changes)


def as_stored(path: str | None) -> str | None:
    """A checkpoint's path as it is kept."""
    return None if path is None else without_url_secrets(path)


def check_axes(sent: SweepAxes, axes: Axes) -> None:
    """Raise InvalidParameter for multipliers without a LoRA, and for checkpoints that would be kept alike."""
    if sent.multipliers is not None and not any(axes.checkpoints):
        raise InvalidParameter(
            "axes.multipliers: there is no LoRA for them; name one in base.loras or axes.checkpoints",
            {"parameter": "multipliers"},
        )
    names = [as_stored(path) for path in axes.checkpoints]
    if len(set(names)) < len(names):
        raise InvalidParameter(
            "axes.checkpoints: two URLs differ only by what is not stored, user and query; name them otherwise",
            {"parameter": "checkpoints"},
        )


def settled(axes: Axes, known: int, digests: Mapping[str, str]) -> Axes:
    """The axes with control images by their digests (hex). After the first `known` ones, repeated ones are left out."""
    names = {image: f"{STORED_IMAGE}{digest}" for image, digest in digests.items()}
    images = [tuple(names[image] for image in each if image in names) for each in axes.control_images]
    return replace(axes, control_images=(*images[:known], *_distinct_after(images, known)))


def _distinct_after(values: Sequence[T], known: int) -> list[T]:
    return [value for index, value in enumerate(values) if index >= known and value not in values[:index]]


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _drawn(seed: int) -> int:
    """-1 would be another seed in each cell, and the cells could not be compared."""
    return secrets.randbelow(2**32) if seed == -1 else seed


def _images(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def requests_of(base: InferenceRequest, axes: Axes) -> Iterator[tuple[tuple[int, int, int], InferenceRequest]]:
    """One request for all cells that share checkpoint, profile and quality, by the indices of these.

    Its prompts are those of `prompts_of`, in that order. Its first LoRA, if it has one, has the first multiplier.
    """
    prompts = list(prompts_of(base, axes))
    for checkpoint, profile, quality in product(
        range(len(axes.checkpoints)), range(len(axes.profiles)), range(len(axes.qualities))
    ):
        path, others = axes.checkpoints[checkpoint], base.loras[1:]
        loras = others if path is None else [_lora(base, path, axes.multipliers[0]), *others]
        changes = {"loras": loras, "profile": axes.profiles[profile]}
        # A quality that nobody sent stays unsent: a model with lossy options refuses one that was.
        if len(axes.qualities) > 1 or "quality" in base.model_fields_set:
            changes["quality"] = axes.qualities[quality]
        yield (checkpoint, profile, quality), base.model_copy(update=changes | {"prompts": prompts})


def _lora(base: InferenceRequest, path: str, multiplier: float) -> Lora:
    changes = {"path": path, "network_multiplier": multiplier}
    return base.loras[0].model_copy(update=changes) if base.loras else Lora.model_validate(changes)


def prompts_of(base: InferenceRequest, axes: Axes) -> Iterator[Prompt]:
    """The prompts of the cells that share a checkpoint: for each prompt, each control image and each seed."""
    [prompt] = base.prompts
    for text, images, seed in product(axes.prompts, axes.control_images, axes.seeds):
        yield prompt.model_copy(update={"prompt": text, "seed": seed, **image_fields(images)})


def image_fields(images: Sequence[str]) -> dict[str, str | None]:
    """The fields of a prompt that name its control images: `ctrl_img` for one, numbered ones for more."""
    names = IMAGE_FIELDS[:1] if len(images) == 1 else IMAGE_FIELDS[1:]
    return dict.fromkeys(IMAGE_FIELDS) | dict(zip(names, images, strict=False))


def stored(base: InferenceRequest, axes: Axes) -> tuple[dict[str, Any], Axes]:
    """The base and the settled axes as they are kept: without secrets."""
    kept = replace(axes, checkpoints=tuple(map(as_stored, axes.checkpoints)))
    body = base.model_dump(mode="json", exclude={"hf_token", "webhook_url", "webhook_events"}, exclude_unset=True)
    loras = [{**lora, "path": without_url_secrets(lora["path"])} for lora in body.get("loras", [])]
    prompt = {key: value for key, value in body["prompts"][0].items() if key not in IMAGE_FIELDS}
    named = {key: value for key, value in image_fields(axes.control_images[0]).items() if value is not None}
    return body | {"loras": loras, "prompts": [prompt | named]}, kept
