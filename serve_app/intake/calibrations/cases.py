"""The cases of a calibration: prompts with their control images, out of a file or a training job's samples."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationError

from serve_app.adapters.lora_root import StoredFile
from serve_app.config import strict_yaml
from serve_app.config.section import faults_of
from serve_app.errors import ConfigRefused, ControlImageRequired, PreviewsImpossible
from serve_app.intake.admission.parts import PART
from serve_app.intake.tenants import Caller
from serve_app.intake.training.files import TrainingFiles
from serve_app.intake.training.previews import chosen_samples
from serve_app.models.registry import MODELS
from serve_app.schemas.requests import Prompt
from serve_app.storage.os_errors import reason_of
from serve_app.training.requests import body_of, control_paths

CONTROL_IMAGES = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")
# What starts the text of a control image that is no path of a file.
NO_PATHS = ("http://", "https://", "data:", "sha256:", "upload:")
# How many control images that are missing an error names.
MAX_NAMED = 10
# The profile of every case: those of trainers promise exact pixels.
PROFILE = "reference"


@dataclass(frozen=True)
class Cases:
    """The prompts of a calibration. `files` are the control images that they name as `part:<name>`.

    `name` says where they come from, to everybody. `training_job` is the name of their training job, if they are its
    samples.
    """

    name: str
    prompts: list[Prompt]
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    training_job: str | None = None

    def with_images(self, names: Mapping[str, str]) -> Self:
        """The same cases, with other names for the control images in `files`."""
        parts = {PART + name: other for name, other in names.items()}
        prompts = [
            prompt.model_copy(
                update={key: parts.get(image, image) for key in CONTROL_IMAGES if (image := getattr(prompt, key))}
            )
            for prompt in self.prompts
        ]
        return replace(self, prompts=prompts, files={})


def read_cases(path: Path) -> Cases:
    """The cases in a file: a YAML list, or JSON with one object per line, each with the fields of a request's prompt.

    Paths of control images are relative to the file's folder. Raises ConfigRefused with one sentence.
    """
    files: dict[str, bytes] = {}
    prompts = []
    for number, item in enumerate(_items(path)):
        where = f"{path}: prompt {number}"
        if not isinstance(item, dict):
            raise ConfigRefused(f"{where} is no mapping; write prompt: ..., ctrl_img: ... for each")
        try:
            prompt = Prompt.model_validate(_with_files(item, path.parent, files))
        except (ValidationError, OSError) as error:
            reason = faults_of(error) if isinstance(error, ValidationError) else reason_of(error)
            raise ConfigRefused(f"{where} cannot be used: {reason}") from error
        if prompt.model_extra:
            raise ConfigRefused(f"{where}: there is no field {', '.join(map(repr, prompt.model_extra))}")
        prompts.append(prompt)
    if not prompts:
        raise ConfigRefused(f"{path}: it has no prompts")
    return Cases(path.name, prompts, files)


def _items(path: Path) -> list[Any]:
    try:
        text = path.read_text()
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        found = strict_yaml.load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigRefused(f"{path}: the file of prompts cannot be read: {reason}") from error
    if not isinstance(found, list):
        raise ConfigRefused(f"{path}: a file of prompts is a list of prompts")
    return found


def _with_files(item: Mapping[str, Any], folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """The prompt with the names of parts in place of paths. Reads the files into `files`. Raises OSError."""
    prompt = dict(item)
    for key in CONTROL_IMAGES:
        value = prompt.get(key)
        if isinstance(value, str) and not value.startswith(NO_PATHS):
            files.setdefault(value, (folder / Path(value).expanduser()).read_bytes())
            prompt[key] = PART + value
    return prompt


def training_cases(files: TrainingFiles, name: str, model: str, caller: Caller) -> Cases:
    """The samples of a training job as cases for `model`, as far as they can be made again. Blocks.

    Raises TrainingJobNotFound, PreviewsImpossible, ControlImageRequired, SampleNotFound and StorageFailed.
    """
    job = files.folders.job(name)
    if job.settings is None or job.model is None or not job.samples:
        raise PreviewsImpossible(job.problem or f"the training job {name!r} has no samples of a model of this service")
    samples = chosen_samples(job, None)
    spec = MODELS[model]
    paths = {sample.number: control_paths(sample, spec) for sample in samples}
    wanted = sorted({path for some in paths.values() for path in some})
    found = files.control_images(job, wanted, caller)
    if missing := [path for path in wanted if path not in found]:
        raise ControlImageRequired(
            f"these control images of the training job {name!r} are not below the LoRA root: "
            f"{', '.join(missing[:MAX_NAMED])}; send prompts with control images instead",
            {"missing": missing[:MAX_NAMED]},
        )
    prompts = []
    for sample in samples:
        names = [PART + found[path].path for path in paths[sample.number]]
        [prompt] = body_of(job, sample, None, PROFILE, names)["prompts"]
        prompts.append(Prompt.model_validate(prompt))
    return Cases("a training job", prompts, _contents(files, found), name)


def _contents(files: TrainingFiles, found: Mapping[str, StoredFile]) -> dict[str, bytes]:
    return {file.path: files.image(file) for file in found.values()}
