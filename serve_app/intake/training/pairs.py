"""Pairs of the trainer's sample images and this service's own, how far they are apart, and what that means."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from serve_app.adapters.lora_root import StoredFile
from serve_app.errors import ControlImageInvalid, LoraDownloadFailed, PreviewsNotFound, SampleNotFound
from serve_app.images.comparison import Comparison, compare, saved_as
from serve_app.images.decode import decode
from serve_app.intake.answers.bodies import Links
from serve_app.intake.tenants import Caller
from serve_app.intake.training.decoding import Decoding, Recent
from serve_app.intake.training.files import TrainingFiles
from serve_app.intake.training.jobs import fact_infos, image_url
from serve_app.intake.training.previews import ID, TrainingPreviews
from serve_app.intake.training.summary import summary_of
from serve_app.jobs.records import ImageRecord, RequestRecord
from serve_app.jobs.store import JobStore
from serve_app.schemas.training import (
    NotRedone,
    OurImage,
    Pair,
    PairComparison,
    PreviewsStatus,
    TheirImage,
)
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone, Status
from serve_app.training.differences import Fact, facts_of, facts_of_edit
from serve_app.training.folders import MAX_NAME_CHARS, SampleImage, TrainingJob
from serve_app.training.requests import why_not
from serve_app.training.samples import Sample

KNOWN_COMPARISONS = 2048
# Of the config's `adapter_weights`: editors compute LoRAs next to the weights, as the trainer does.
HOOKS = "hooks"


class TrainingPairs:
    """Answers what came out of previews that were made again."""

    def __init__(
        self,
        files: TrainingFiles,
        previews: TrainingPreviews,
        store: JobStore,
        artifacts: Artifacts,
        decoding: Decoding,
    ) -> None:
        self._files = files
        self._previews = previews
        self._store = store
        self._artifacts = artifacts
        self._decoding = decoding
        self._comparisons = Recent[Comparison](KNOWN_COMPARISONS)

    async def status(self, name: str, previews_id: str, caller: Caller, links: Links) -> PreviewsStatus:
        """Raises TrainingJobNotFound, PreviewsNotFound, Overloaded, StoreUnavailable and StorageFailed."""
        job = await self._files.in_thread(partial(self._files.folders.job, name))
        form = ID.fullmatch(previews_id)
        requests = (
            {} if form is None else await self._previews.requests_of(previews_id, range(len(job.samples)), caller)
        )
        if form is None or not requests:
            raise PreviewsNotFound(
                f"there are no previews {previews_id[:MAX_NAME_CHARS]!r} of this training job; POST .../previews makes "
                "some",
                {"id": previews_id[:MAX_NAME_CHARS]},
            )
        step = int(form["step"])
        theirs = job.images_of(step)
        pairs = []
        for number, (_, keyed) in sorted(requests.items()):
            record = await self._store.requests.get(keyed.id)
            pairs.append(await self._pair(job, job.samples[number], theirs.get(number), record, links))
        problems = ((sample.number, why_not(job, sample)) for sample in job.samples if sample.number not in requests)
        return PreviewsStatus(
            id=previews_id,
            training_job=job.name,
            step=step,
            status=whole_status([pair.ours.status for pair in pairs]),
            pairs=pairs,
            not_redone=[NotRedone(sample=number, problem=problem) for number, problem in problems if problem],
            summary=summary_of(pairs),
        )

    async def _pair(
        self, job: TrainingJob, sample: Sample, theirs: SampleImage | None, record: RequestRecord, links: Links
    ) -> Pair:
        [image] = record.images
        done = None if record.purged else image.result
        comparison, problem = None, None
        if theirs is None:
            problem = "the trainer has no image of this step and sample"
        elif record.purged:
            problem = "our image was deleted"
        elif done is not None:
            comparison, problem = await self._comparison(theirs, done, record.tenant)
        ours = OurImage(
            request_id=record.id,
            status=record.status,
            url=None if done is None else links.image(record.tenant, record.id, 0),
            error=record.error,
            error_code=record.error_code,
        )
        their = (
            None
            if theirs is None
            else TheirImage(file=theirs.name, url=image_url(job.name, theirs.name, links.base_url))
        )
        facts = fact_infos([*facts_of(job, sample), *_facts_of_edit(job, image)])
        return Pair(sample=sample.number, theirs=their, ours=ours, comparison=comparison, problem=problem, facts=facts)

    async def _comparison(
        self, theirs: SampleImage, done: EditDone, tenant: str
    ) -> tuple[PairComparison | None, str | None]:
        """How far the images are apart, or why that cannot be said."""
        try:
            file = await self._files.in_thread(partial(self._files.sample_file, theirs.path))
            make = partial(self._compared, file, theirs, done, tenant)
            found = await self._comparisons.get(f"{file.id} {done.key}", make)
        except (SampleNotFound, LoraDownloadFailed, ControlImageInvalid) as error:
            return None, error.message
        except FileNotFoundError:
            return None, "our image is not stored any more"
        except ValueError as error:
            return None, str(error)
        is_equal = found.psnr_db is None
        psnr = None if found.psnr_db is None else round(found.psnr_db, 2)
        return PairComparison(is_equal=is_equal, equal_share=found.equal_share, psnr_db=psnr), None

    async def _compared(self, file: StoredFile, theirs: SampleImage, done: EditDone, tenant: str) -> Comparison:
        """Compare two images.

        Raises SampleNotFound, ControlImageInvalid, FileNotFoundError, Overloaded, and ValueError with a sentence.
        """
        data = await self._files.in_thread(partial(self._files.sample_image, file, theirs))
        size, ours = (await self._decoding.facts(data, tenant)).size, (done.width, done.height)
        if size != ours:
            raise ValueError(
                f"the trainer's image has {_size(size)} pixels, and ours {_size(ours)}: the training config names "
                "another size now than when the trainer made it"
            )
        return await self._decoding.run(size, tenant, partial(self._measure, data, theirs.format, done.key))

    def _measure(self, data: bytes, suffix: str, key: str) -> Comparison:
        """Blocks. Raises FileNotFoundError if our image is not stored any more."""
        ours = decode(self._artifacts.get(key), "ignore").image
        return compare(decode(data, "ignore").image, saved_as(ours, suffix))


def _facts_of_edit(job: TrainingJob, image: ImageRecord) -> Iterable[Fact]:
    """What there is to know about an image of ours, once it is finished."""
    runtime = image.result.runtime if image.result else {}
    if "dtype" not in runtime:
        return ()
    has_lora = any(use.scale != 0 for use in image.plan.adapters)
    return facts_of_edit(job, runtime["dtype"], merges_lora=has_lora and runtime.get("adapter_weights") != HOOKS)


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def whole_status(statuses: Sequence[Status]) -> Status:
    """The status of several requests together: they end with the last one, and have failed if one of them has."""
    running = {status for status in statuses if not status.ended}
    if running:
        begun = len(running) < len(set(statuses)) or Status.IN_PROGRESS in running
        return Status.IN_PROGRESS if begun else Status.IN_QUEUE
    ends: Mapping[Status, None] = dict.fromkeys((Status.FAILED, Status.CANCELED, Status.SUCCEEDED))
    return next(status for status in ends if status in statuses)
