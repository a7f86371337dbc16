"""Training jobs as clients see them: the list of all, one of them, and its sample images."""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import quote

from serve_app.adapters.lora_root import StoredFile
from serve_app.config import AppConfig
from serve_app.errors import ControlImageInvalid, InvalidParameter, SampleNotFound
from serve_app.images.comparison import thumbnail
from serve_app.images.decode import decode
from serve_app.intake.tenants import Caller
from serve_app.intake.training.bodies import request_of
from serve_app.intake.training.decoding import Decoding, Recent
from serve_app.intake.training.files import TrainingFiles, Weights, profile_of
from serve_app.models.registry import MODELS
from serve_app.schemas.training import (
    FactInfo,
    SampleControlImage,
    SampleImageInfo,
    SampleInfo,
    TrainingJobEntry,
    TrainingJobInfo,
    TrainingJobList,
)
from serve_app.training.differences import Fact, facts_of
from serve_app.training.file_names import SAMPLES, THUMBNAILS
from serve_app.training.folders import (
    MAX_NAME_CHARS,
    SampleImage,
    TrainingJob,
    is_job_name,
    no_training_job,
    sample_image_at,
)
from serve_app.training.requests import NamedLora, body_of, control_paths, why_not
from serve_app.training.samples import Sample

MEDIA_TYPES = {"jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
# How many thumbnails are kept in memory, about 20 KB each.
KNOWN_THUMBNAILS = 512


class TrainingJobs:
    """Answers questions about training jobs."""

    def __init__(self, config: AppConfig, files: TrainingFiles, decoding: Decoding) -> None:
        self._served = {model.id for model in config.models}
        self._files = files
        self._decoding = decoding
        self._thumbnails = Recent[bytes](KNOWN_THUMBNAILS)

    async def jobs(self, search: str, cursor: str, limit: int, base_url: str, caller: Caller) -> TrainingJobList:
        """A page of the jobs below the LoRA root that the caller sees, by name, after the name `cursor`.

        `search` is looked for in the name and the trigger word, in any case. Raises Overloaded or StorageFailed.
        """
        return await self._files.in_thread(partial(self._page, search.lower(), cursor, limit, base_url, caller))

    async def job(self, name: str, base_url: str, caller: Caller) -> TrainingJobInfo:
        """One job. Raises TrainingJobNotFound, Overloaded or StorageFailed."""
        return await self._files.in_thread(partial(self._whole, name, base_url, caller))

    async def image(self, name: str, file: str, caller: Caller, *, small: bool) -> tuple[bytes, str, str]:
        """A sample image, or with `small` its thumbnail: the file, its media type, and what changes with its content.

        Raises TrainingJobNotFound, SampleNotFound, LoraDownloadFailed or Overloaded.
        """
        image = _named_image(name, file)
        stored = await self._files.in_thread(partial(self._files.sample_file, image.path))
        if small:
            make = partial(self._make_thumbnail, stored, image, caller.tenant)
            return await self._thumbnails.get(stored.id, make), MEDIA_TYPES["jpg"], f"{stored.id}-small"
        data = await self._files.in_thread(partial(self._files.sample_image, stored, image))
        return data, MEDIA_TYPES[image.format], stored.id

    def _page(self, search: str, cursor: str, limit: int, base_url: str, caller: Caller) -> TrainingJobList:
        visible = (job for job in self._files.folders.jobs(cursor) if caller.may_see_training_job(job.name))
        matching = (job for job in visible if _matches(job, search))
        # One more, to know whether there is another page.
        found = list(islice(matching, limit + 1))
        page = found[:limit]
        return TrainingJobList(
            training_jobs=[self._entry_of(job, base_url) for job in page],
            next_cursor=page[-1].name if len(found) > limit else None,
        )

    def _entry_of(self, job: TrainingJob, base_url: str) -> TrainingJobEntry:
        """A job in the list of all: of its weights, the newest file alone is read."""
        newest = self._files.newest(job)
        paths = {} if newest is None else {newest.info.path: newest}
        weights = {each.path: paths.get(each.path) or self._files.unread(each) for each in job.weights}
        return TrainingJobEntry(**self._fields(job, weights, newest, base_url))

    def _whole(self, name: str, base_url: str, caller: Caller) -> TrainingJobInfo:
        job = self._files.folders.job(name)
        weights = {each.path: self._files.weights(each) for each in job.weights}
        usable = [each for each in weights.values() if each.is_usable]
        newest = usable[-1] if usable else None
        return TrainingJobInfo(
            **self._fields(job, weights, newest, base_url),
            sample_images=[image_info(job, image, base_url) for image in job.sample_images],
            samples=self._samples(job, newest, caller),
        )

    def _fields(
        self, job: TrainingJob, weights: Mapping[str, Weights], newest: Weights | None, base_url: str
    ) -> dict[str, object]:
        return {
            "name": job.name,
            "url": job_url(job.name, base_url),
            "model": job.model,
            "base": job.settings.base if job.settings else None,
            "is_served": job.model in self._served,
            "trigger_word": job.trigger_word,
            "trainer_version": newest.trainer_version if newest else None,
            "profile": profile_of(newest),
            "checkpoints": [weights[each.path].info for each in job.checkpoints],
            "final": weights[job.final.path].info if job.final else None,
            "sample_steps": sorted({image.step for image in job.sample_images}),
            "problem": job.problem,
        }

    def _samples(self, job: TrainingJob, newest: Weights | None, caller: Caller) -> list[SampleInfo]:
        named = sorted({path for sample in job.samples for path in self._paths(job, sample)})
        found = self._files.control_images(job, named, caller)
        return [self._sample(job, sample, newest, found) for sample in job.samples]

    def _sample(
        self, job: TrainingJob, sample: Sample, newest: Weights | None, found: Mapping[str, StoredFile]
    ) -> SampleInfo:
        images = [self._control_image(path, found.get(path)) for path in self._paths(job, sample)]
        problem = why_not(job, sample)
        body = None
        if problem is None and job.model is not None:
            references = [image.reference for image in images if image.reference is not None]
            lora = None if newest is None else NamedLora(newest.info.path)
            body, problem = _checked(sample, body_of(job, sample, lora, profile_of(newest), references))
        return SampleInfo(
            sample=sample.number,
            prompt=sample.prompt,
            body=body,
            control_images=images,
            problem=problem,
            facts=fact_infos(facts_of(job, sample)),
        )

    def _control_image(self, path: str, file: StoredFile | None) -> SampleControlImage:
        digest = None if file is None else self._files.digest(file)
        if file is None or digest is None:
            return SampleControlImage(path=path, found=None, reference=None)
        return SampleControlImage(path=path, found=file.path, reference=f"upload:{digest}")

    def _paths(self, job: TrainingJob, sample: Sample) -> list[str]:
        return control_paths(sample, MODELS[job.model]) if job.model else []

    async def _make_thumbnail(self, stored: StoredFile, image: SampleImage, tenant: str) -> bytes:
        """The trainer's own thumbnail if it is there, otherwise one that is made here."""
        folder = stored.path.removesuffix(image.name) + f"{THUMBNAILS}/"
        own = await self._files.in_thread(partial(self._files.thumbnail, folder, image.name))
        if own is not None:
            return own
        data = await self._files.in_thread(partial(self._files.sample_image, stored, image))
        try:
            facts = await self._decoding.facts(data, tenant)
            return await self._decoding.run(facts.size, tenant, lambda: thumbnail(decode(data, "ignore").image))
        except ControlImageInvalid as error:
            raise SampleNotFound(f"the sample image {image.name!r} cannot be read: {error.message}") from error


def _named_image(name: str, file: str) -> SampleImage:
    """The sample image that the trainer would name so. Raises TrainingJobNotFound or SampleNotFound.

    No other name is looked up, so that none leads elsewhere.
    """
    if not is_job_name(name):
        raise no_training_job(name)
    image = sample_image_at(f"{name}/{SAMPLES}/{file}") if "/" not in file else None
    if image is None:
        raise SampleNotFound(
            f"the training job {name[:MAX_NAME_CHARS]!r} has no sample image {file[:MAX_NAME_CHARS]!r}",
            {"training_job": name[:MAX_NAME_CHARS], "file": file[:MAX_NAME_CHARS]},
        )
    return image


def _checked(sample: Sample, body: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """The body, or why this service does not take it."""
    try:
        request_of(sample, body)
    except InvalidParameter as error:
        return None, error.message
    return body, None


def image_info(job: TrainingJob, image: SampleImage, base_url: str) -> SampleImageInfo:
    url = image_url(job.name, image.name, base_url)
    return SampleImageInfo(
        step=image.step, sample=image.number, file=image.name, url=url, thumbnail_url=f"{url}?thumbnail=true"
    )


def fact_infos(facts: Iterable[Fact]) -> list[FactInfo]:
    return [FactInfo(code=fact.code, text=fact.text, differs=fact.differs) for fact in facts]


def job_url(name: str, base_url: str) -> str:
    """The URL of a training job."""
    return f"{base_url}/v1/training-jobs/{quote(name)}"


def image_url(name: str, file: str, base_url: str) -> str:
    """The URL of a sample image of a training job."""
    return f"{job_url(name, base_url)}/samples/{quote(file)}"


def _matches(job: TrainingJob, search: str) -> bool:
    return any(search in text.lower() for text in (job.name, job.trigger_word or ""))
