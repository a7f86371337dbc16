"""Finds training jobs below the LoRA root and says what is in their folders. Nothing here reads weights.

A job's folder may change while it is read, since its trainer may still be running. What is not whole yet is left out,
or has a `problem`; it is no error.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath

from serve_app.adapters.lora_root import Listed, LoraRoot, StoredFile
from serve_app.errors import LoraDownloadFailed, LoraNotFound, LoraPathForbidden, TrainingJobNotFound
from serve_app.training.config_yaml import MAX_BYTES, ConfigUnreadable
from serve_app.training.file_names import CONFIG, NAMED_LORA, SAMPLES, WEIGHTS, read_sample_name, stem_of, step_of
from serve_app.training.samples import Sample
from serve_app.training.settings import TrainingSettings, read_settings

logger = logging.getLogger(__name__)

# How many configs are kept in memory, some KB each.
KNOWN_CONFIGS = 2048
# How much of a name an error repeats.
MAX_NAME_CHARS = 200
# How long the listing of a bucket is used (s).
KEEP_LISTING_S = 5.0
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights. `path` is what `loras[].path` of a request names. Whether it is whole is not known yet."""

    path: str
    step: int | None
    listed: Listed = field(compare=False, repr=False)


@dataclass(frozen=True)
class SampleImage:
    """An image that the trainer made at a step, from the sample of this number."""

    path: str
    name: str
    step: int
    number: int
    format: str
    time_ms: int


@dataclass(frozen=True)
class TrainingJob:
    """A training job. `name` is its folder's path below the LoRA root.

    `checkpoints` are in the order of their steps. `final` is the file that the trainer writes at the end; its step is
    the one that the config names. `sample_images` has the newest image of each step and number, in this order.
    Images of a step stay when the trainer deletes its checkpoint. `problem` says why there are no settings, or no
    samples.
    """

    name: str
    settings: TrainingSettings | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    final: Checkpoint | None = None
    sample_images: tuple[SampleImage, ...] = ()
    problem: str | None = None

    @property
    def model(self) -> str | None:
        """The id of our model; None if the config names none."""
        return self.settings.model if self.settings else None

    @property
    def trigger_word(self) -> str | None:
        return self.settings.trigger_word if self.settings else None

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The settings of the samples, by number."""
        return self.settings.samples if self.settings else ()

    @property
    def weights(self) -> tuple[Checkpoint, ...]:
        """All files of weights, by step; the final one is the last."""
        return self.checkpoints if self.final is None else (*self.checkpoints, self.final)

    def between(self, first: int | None = None, last: int | None = None) -> tuple[Checkpoint, ...]:
        """The files from one step to another, both included. The final file counts at the step of its end."""
        low, high = first or 0, float("inf") if last is None else last
        return tuple(each for each in self.weights if each.step is not None and low <= each.step <= high)

    def images_of(self, step: int) -> dict[int, SampleImage]:
        """The sample images of a step, by number."""
        return {image.number: image for image in self.sample_images if image.step == step}


def is_job_name(name: str) -> bool:
    """Whether a training job may have this name: the shortest path of a folder that is not hidden."""
    parts = PurePosixPath(name)
    return bool(name) and str(parts) == name and not any(part.startswith(".") for part in parts.parts)


def no_training_job(name: str) -> TrainingJobNotFound:
    """The error for a training job that is not there, or not there for this caller."""
    shown = name[:MAX_NAME_CHARS]
    text = f"there is no training job {shown!r} below the LoRA root; GET /v1/training-jobs lists them"
    return TrainingJobNotFound(text, {"training_job": shown})


class TrainingFolders:
    """The training jobs below the LoRA root. Every method blocks."""

    def __init__(self, root: LoraRoot) -> None:
        self._root = root
        # A config is read again only if its store says that it has changed.
        self._known = lru_cache(KNOWN_CONFIGS)(self._read_config)
        self._listed: tuple[float, list[Listed]] = (-math.inf, [])

    def jobs(self, after: str = "") -> Iterator[TrainingJob]:
        """The jobs whose names come after a name, by name. Each folder is read when its job is needed.

        Raises StorageFailed.
        """
        for folder in _folders(self.all_files()):
            if folder.name <= after:
                continue
            job = self._job_or_problem(folder)
            if job is not None:
                yield job

    def all_files(self) -> list[Listed]:
        """Every file below the LoRA root. That of a bucket may be some seconds old, since listing one takes long.

        Raises StorageFailed.
        """
        at, listed = self._listed
        if self._root.is_local:
            return self._root.listing()
        if time.monotonic() - at > KEEP_LISTING_S:
            listed = self._root.listing()
            self._listed = (time.monotonic(), listed)
        return listed

    def _job_or_problem(self, folder: "_Folder") -> TrainingJob | None:
        """The job in a folder. Whatever is wrong with its files, the jobs in other folders are still listed."""
        try:
            settings, problem = self._settings(folder.config)
            return _job(folder, settings, problem)
        except LoraDownloadFailed as error:
            return _job(folder, None, error.message)
        except Exception:
            logger.exception("the training job in %s could not be read", folder.name)
            return TrainingJob(folder.name, problem="the folder could not be read; the service's log says why")

    def job(self, name: str) -> TrainingJob:
        """One job. Raises TrainingJobNotFound, LoraDownloadFailed or StorageFailed."""
        found = next((each for each in _folders(self._listing(name)) if each.name == name), None)
        job = None if found is None else _job(found, *self._settings(found.config))
        if job is None:
            raise no_training_job(name)
        return job

    def _listing(self, name: str) -> list[Listed]:
        """The files in a job's folder; none for a name that a listing of all jobs would not have."""
        if not is_job_name(name):
            return []
        try:
            return self._root.listing(name)
        except (LoraPathForbidden, LoraNotFound):
            return []

    def file(self, checkpoint: Checkpoint) -> StoredFile:
        """The file of a checkpoint, as it is in its store now. Raises LoraNotFound or LoraDownloadFailed."""
        return self._root.stored(checkpoint.listed)

    def _settings(self, config: Listed | None) -> tuple[TrainingSettings | None, str | None]:
        """The settings, and what is wrong with them. Raises LoraDownloadFailed."""
        if config is None:
            return None, f"the folder has no {CONFIG}, so nothing is known about its samples"
        try:
            settings = self._known(self._root.stored(config))
        except ConfigUnreadable as error:
            return None, f"{CONFIG} {error}"
        except (LoraNotFound, LoraPathForbidden):
            return None, f"{CONFIG} is not there any more, or leads out of the LoRA root"
        return settings, settings.problem

    def _read_config(self, file: StoredFile) -> TrainingSettings:
        return read_settings(self._root.content(file, MAX_BYTES + 1))


@dataclass
class _Folder:
    """The files of one folder that may be the trainer's."""

    name: str
    config: Listed | None = None
    weights: list[Listed] = field(default_factory=list)
    samples: list[Listed] = field(default_factory=list)

    def images(self) -> list[SampleImage]:
        found = (_sample_image(each.path, _name(each.path)) for each in self.samples)
        return [image for image in found if image is not None]

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        found = ((step_of(_name(each.path)), each) for each in self.weights)
        steps = sorted(((step, each) for step, each in found if step is not None), key=lambda pair: pair[0])
        return tuple(Checkpoint(each.path, step, each) for step, each in steps)

    def final(self, job_name: str | None, step: int | None) -> Checkpoint | None:
        """The final file: that of the checkpoints' name, of the job's name or of the folder's, in this order."""
        stems = [stem_of(_name(each.path)) for each in self.weights if step_of(_name(each.path)) is not None]
        names = [name for name in (job_name, PurePosixPath(self.name).name) if name]
        stems += [stem for name in names for stem in (name, name + NAMED_LORA)]
        by_stem = {stem_of(_name(each.path)): each for each in self.weights if step_of(_name(each.path)) is None}
        found = next((by_stem[stem] for stem in stems if stem in by_stem), None)
        return None if found is None else Checkpoint(found.path, step, found)


def _job(folder: _Folder, settings: TrainingSettings | None, problem: str | None) -> TrainingJob | None:
    """The job in a folder; None if the trainer did not write it."""
    checkpoints, images = folder.checkpoints(), folder.images()
    if settings is None and not checkpoints and not images:
        return None
    name, end = (settings.job_name, settings.steps) if settings else (None, None)
    return TrainingJob(
        name=folder.name,
        settings=settings,
        checkpoints=checkpoints,
        final=folder.final(name, end),
        sample_images=_newest(images),
        problem=problem,
    )


def _folders(listing: Iterable[Listed]) -> Sequence[_Folder]:
    """The folders that may be training jobs, by name. Files that lie in the LoRA root itself belong to none."""
    folders: dict[str, _Folder] = {}

    def folder(name: str) -> _Folder:
        return folders.setdefault(name, _Folder(name))

    for listed in listing:
        parent, _, name = listed.path.rpartition("/")
        if not parent:
            continue
        if name == CONFIG:
            folder(parent).config = listed
        elif name.endswith(WEIGHTS):
            folder(parent).weights.append(listed)
        elif parent.endswith(f"/{SAMPLES}"):
            folder(parent.removesuffix(f"/{SAMPLES}")).samples.append(listed)
    return [folders[name] for name in sorted(folders)]


def sample_image_at(path: str) -> SampleImage | None:
    """The sample image that a path below the LoRA root names; None if the trainer writes no such name."""
    return _sample_image(path, _name(path))


def _sample_image(path: str, name: str) -> SampleImage | None:
    parts = read_sample_name(name)
    if parts is None:
        return None
    return SampleImage(path, name, parts.step, parts.number, parts.format, parts.time_ms)


def _newest(images: Iterable[SampleImage]) -> tuple[SampleImage, ...]:
    """The newest image of each step and number: a job that was started again makes them again."""
    newest: Mapping[tuple[int, int], SampleImage]
    newest = {(each.step, each.number): each for each in sorted(images, key=lambda image: image.time_ms)}
    return tuple(newest[key] for key in sorted(newest))


def control_image_candidates(listing: Iterable[Listed]) -> Mapping[str, Sequence[str]]:
    """The paths of images that may be control images, by file name: all but the trainer's samples."""
    found: dict[str, list[str]] = defaultdict(list)
    for listed in listing:
        parent, _, name = listed.path.rpartition("/")
        if name.lower().endswith(IMAGE_SUFFIXES) and not (
            PurePosixPath(parent).name == SAMPLES and read_sample_name(name)
        ):
            found[name].append(listed.path)
    return found


def _name(path: str) -> str:
    return path.rpartition("/")[2]
