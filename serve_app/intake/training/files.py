"""What the files of training jobs say: their weights, and the control images that their samples name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TypeVar

from serve_app.adapters.lora_root import Listed, LoraRoot, StoredFile
from serve_app.errors import LoraDownloadFailed, LoraNotFound, LoraPathForbidden, SampleNotFound
from serve_app.images.comparison import is_whole
from serve_app.intake.admission.admission import sha256_of
from serve_app.intake.catalogue import Catalogue
from serve_app.intake.tenants import Caller
from serve_app.models.profile import profile_of_trainer
from serve_app.schemas.training import WeightsFile
from serve_app.training.file_names import step_of
from serve_app.training.folders import Checkpoint, SampleImage, TrainingFolders, TrainingJob, control_image_candidates
from serve_app.training.requests import find_image

T = TypeVar("T")

TRAINER = "ai-toolkit"
# How many of a job's newest files are read to find one that is whole.
NEWEST = 3
KNOWN_DIGESTS = 1024
MAX_THUMBNAIL_BYTES = 2**20
# Why a file that a listing named cannot be read now.
GONE = (LoraNotFound, LoraPathForbidden, LoraDownloadFailed)


@dataclass(frozen=True)
class Weights:
    """A file of weights, and the version of the trainer that wrote it, if its header says so.

    `version` changes with the file's content; it is empty if the file was not looked at.
    """

    info: WeightsFile
    version: str = ""
    trainer_version: str | None = None

    @property
    def is_usable(self) -> bool:
        return bool(self.info.fits)


class TrainingFiles:
    """Reads files of training jobs. Every method blocks, except `in_thread`."""

    def __init__(self, root: LoraRoot, catalogue: Catalogue, max_image_bytes: int) -> None:
        self._root = root
        self._catalogue = catalogue
        self._max_image_bytes = max_image_bytes
        self.folders = TrainingFolders(root)
        self._digest = lru_cache(KNOWN_DIGESTS)(self._read_digest)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run `call`, which may use the other methods. Raises Overloaded, and what `call` raises."""
        return await self._root.in_thread(call)

    def weights(self, checkpoint: Checkpoint) -> Weights:
        """A file of weights, with what its header says."""
        path, step = checkpoint.path, checkpoint.step
        try:
            file = self.folders.file(checkpoint)
        except GONE as error:
            return Weights(
                WeightsFile(path=path, step=step, size_bytes=None, state="unreadable", fits=[], problem=error.message)
            )
        known = self._catalogue.describe(file)
        info, receipt = known.info, known.info.receipt
        whole = WeightsFile(
            path=path, step=step, size_bytes=file.size_bytes, state="complete", fits=info.fits, problem=info.problem
        )
        if known.is_cut_off:
            problem = f"the trainer is still writing it, or it was cut off: {info.problem}"
            return Weights(whole.model_copy(update={"state": "incomplete", "problem": problem}))
        if receipt is None:
            return Weights(whole.model_copy(update={"state": "unreadable"}))
        if step_of(PurePosixPath(path).name) is None and receipt.step is not None:
            # The config may name a later step than the one that the final file was written at.
            whole = whole.model_copy(update={"step": receipt.step})
        return Weights(whole, file.id, receipt.trainer_version if receipt.trainer == TRAINER else None)

    def unread(self, checkpoint: Checkpoint) -> Weights:
        """A file of weights whose header is not read."""
        size, path, step = self._root.size_of(checkpoint.listed), checkpoint.path, checkpoint.step
        return Weights(WeightsFile(path=path, step=step, size_bytes=size, state="unknown", fits=None, problem=None))

    def newest(self, job: TrainingJob) -> Weights | None:
        """The newest file of weights that can be used; None if none of the newest ones can."""
        found = (self.weights(checkpoint) for checkpoint in reversed(job.weights[-NEWEST:]))
        return next((weights for weights in found if weights.is_usable), None)

    def of_step(self, job: TrainingJob, step: int) -> Weights | None:
        """The file of a training step: its checkpoint, or else the final one; None if it is not there."""
        checkpoint = next((each for each in job.checkpoints if each.step == step), None)
        if checkpoint is not None:
            return self.weights(checkpoint)
        final = None if job.final is None else self.weights(job.final)
        return final if final is not None and final.info.step == step else None

    def control_images(self, job: TrainingJob, paths: Sequence[str], caller: Caller) -> Mapping[str, StoredFile]:
        """The files below the LoRA root that paths on the training machine mean, those that were found.

        Files outside of the job's folder are found if the caller may use LoRAs that lie there. Raises StorageFailed.
        """
        if not paths:
            return {}
        found = self._find_images(job, paths, self._root.listing(job.name))
        missing = [path for path in paths if path not in found]
        if missing:
            # Only now: listing all of a bucket takes long.
            visible = (each for each in self.folders.all_files() if caller.may_use_lora(each.path))
            found |= self._find_images(job, missing, visible)
        return found

    def _find_images(self, job: TrainingJob, paths: Sequence[str], files: Iterable[Listed]) -> dict[str, StoredFile]:
        candidates, found = control_image_candidates(files), {}
        for path in paths:
            place = find_image(path, job.name, candidates)
            if place is not None:
                with suppress(*GONE):
                    found[path] = self._root.find(place)
        return found

    def digest(self, file: StoredFile) -> str | None:
        """The SHA-256 (hex) of an image's file; None if it cannot be read or is too large."""
        try:
            return self._digest(file)
        except GONE:
            return None

    def image(self, file: StoredFile) -> bytes:
        """The bytes of an image's file. Raises SampleNotFound if it is gone, too large or not whole yet."""
        try:
            data = self._root.content(file, self._max_image_bytes + 1)
        except GONE as error:
            raise _no_image(file.path, "is not there any more") from error
        if len(data) > self._max_image_bytes:
            raise _no_image(file.path, f"has more than {self._max_image_bytes} bytes")
        return data

    def sample_file(self, path: str) -> StoredFile:
        """The file of a sample image. Raises SampleNotFound or LoraDownloadFailed."""
        try:
            return self._root.find(path)
        except (LoraNotFound, LoraPathForbidden) as error:
            raise _no_image(PurePosixPath(path).name, "is not there") from error

    def sample_image(self, file: StoredFile, image: SampleImage) -> bytes:
        """The bytes of a sample image. Raises SampleNotFound, also while the trainer is still writing it."""
        data = self.image(file)
        if not is_whole(data, image.format):
            raise _no_image(image.name, "is still being written; ask again in a moment")
        return data

    def thumbnail(self, folder: str, name: str) -> bytes | None:
        """The trainer's own thumbnail of a sample image, in this folder below the root; None if there is no whole one.

        Versions of the trainer name it after the whole name, or without its format.
        """
        for own in (f"{name}.jpg", f"{name.rpartition('.')[0]}.jpg"):
            try:
                data = self._root.content(self._root.find(folder + own), MAX_THUMBNAIL_BYTES + 1)
            except GONE:
                continue
            if len(data) <= MAX_THUMBNAIL_BYTES and is_whole(data, "jpg"):
                return data
        return None

    def _read_digest(self, file: StoredFile) -> str | None:
        data = self._root.content(file, self._max_image_bytes + 1)
        return None if len(data) > self._max_image_bytes else sha256_of(data)


def profile_of(weights: Weights | None) -> str:
    """The name of the profile that makes the pixels of the trainer's version that wrote a file."""
    profile, _ = profile_of_trainer([weights.trainer_version if weights else None])
    return profile.name


def _no_image(name: str, what: str) -> SampleNotFound:
    return SampleNotFound(f"the sample image {name!r} {what}", {"file": name})
