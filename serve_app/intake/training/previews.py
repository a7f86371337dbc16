"""Previews of a training job that are made again: one ordinary request per sample, and how close each comes.

Nothing is stored about them besides the requests. Their idempotency keys name the previews and the sample, so that any
ingress finds them, and the same POST makes nothing again.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve_app.config import AppConfig
from serve_app.errors import ControlImageRequired, InvalidParameter, LoraFileRequired, PreviewsImpossible
from serve_app.images.data_urls import decode_inline
from serve_app.intake.admission.checks import is_reference
from serve_app.intake.submission import Submissions, digest_of
from serve_app.intake.tenants import Caller
from serve_app.intake.training.bodies import request_of
from serve_app.intake.training.files import TrainingFiles, Weights, profile_of
from serve_app.intake.uploads import Uploads
from serve_app.jobs.keyed_requests import KeyedRequest
from serve_app.jobs.store import JobStore
from serve_app.models.registry import MODELS
from serve_app.schemas.requests import InferenceRequest
from serve_app.schemas.training import PreviewsRequest
from serve_app.training.folders import TrainingJob
from serve_app.training.requests import NamedLora, body_of, control_paths, file_name, why_not
from serve_app.training.samples import MAX_SAMPLES, Sample

# The form of an id: the step, and a digest.
ID = re.compile(r"(?P<step>\d{1,12})-(?P<digest>[0-9a-f]{32})")
# A sample whose request failed, was cancelled or purged gets a new one with the next POST, so many times.
MAX_ATTEMPTS = 5
# How many control images that are missing an error names.
MAX_NAMED = 10


@dataclass(frozen=True)
class Redo:
    """What makes the previews of a step again: the LoRA, None for the base model, and the profile.

    `version` changes with the content of the LoRA's file.
    """

    job: TrainingJob
    lora: NamedLora | None
    profile: str
    version: str = ""


class TrainingPreviews:
    """Makes previews of training jobs again."""

    def __init__(
        self, config: AppConfig, files: TrainingFiles, submissions: Submissions, uploads: Uploads, store: JobStore
    ) -> None:
        self._require_lora = config.require_lora
        self._max_bytes = config.fetch.max_bytes
        self._files = files
        self._submissions = submissions
        self._uploads = uploads
        self._store = store

    async def start(self, name: str, wanted: PreviewsRequest, caller: Caller, base_url: str) -> str:
        """Send a request for each sample that has none yet, and return the id of the previews.

        Raises TrainingJobNotFound, PreviewsImpossible, InvalidParameter, ControlImageRequired, and what a submission
        raises.
        """
        redo = await self._files.in_thread(partial(self._redo, name, wanted.step))
        samples = chosen_samples(redo.job, wanted.samples)
        images = await self._control_images(redo.job, samples, wanted.control_images, caller)
        requests = {sample.number: self._request(redo, sample, images, wanted) for sample in samples}
        previews_id = id_of(redo, wanted.step, requests)
        earlier = await self.requests_of(previews_id, requests, caller)
        for number, request in requests.items():
            attempt, found = earlier.get(number, (0, None))
            if found is not None and (not found.gives_no_image or attempt + 1 == MAX_ATTEMPTS):
                continue
            key = key_of(previews_id, number, attempt if found is None else attempt + 1)
            await self._submissions.submit(request, caller, base_url, key)
        return previews_id

    async def requests_of(
        self, previews_id: str, numbers: Iterable[int], caller: Caller
    ) -> dict[int, tuple[int, KeyedRequest]]:
        """The newest request of each of these samples, and which attempt it is, by the sample's number."""
        keys = {
            key_of(previews_id, number, attempt): (number, attempt)
            for number in numbers
            for attempt in range(MAX_ATTEMPTS)
        }
        found = await self._store.keyed.find(caller.tenant, keys)
        newest = sorted((*keys[key], request) for key, request in found.items() if key in keys)
        return {number: (attempt, request) for number, attempt, request in newest}

    def _redo(self, name: str, step: int) -> Redo:
        """What to make the previews of a step with.

        Raises TrainingJobNotFound, PreviewsImpossible, LoraFileRequired and StorageFailed.
        """
        job = self._files.folders.job(name)
        if job.settings is None or not job.samples:
            raise PreviewsImpossible(job.problem or f"the config of the training job {name!r} names no samples")
        if job.model is None:
            raise PreviewsImpossible(f"the training job {name!r} is for {job.settings.arch!r}, which no model here is")
        newest = self._files.newest(job)
        if step == 0:
            return Redo(job, self._base_lora(job, newest), profile_of(newest))
        weights = self._files.of_step(job, step)
        if weights is None:
            raise PreviewsImpossible(
                f"there is no checkpoint of step {step}: the trainer keeps only the last ones, and the samples stay",
                {"step": step, "steps": sorted({each.step for each in job.weights if each.step is not None})},
            )
        if weights.info.state == "incomplete":
            raise PreviewsImpossible(f"the file of step {step} is not whole: {weights.info.problem}", {"step": step})
        profile = profile_of(weights if weights.trainer_version else newest)
        return Redo(job, NamedLora(weights.info.path), profile, weights.version)

    def _base_lora(self, job: TrainingJob, newest: Weights | None) -> NamedLora | None:
        """The LoRA of the step 0, which is the base model: none, or where one is needed, the newest without effect."""
        if not self._require_lora:
            return None
        if newest is None:
            raise LoraFileRequired(
                "this service takes no request without a LoRA (require_lora), and the job has no file of weights that "
                "could be sent with the strength 0, so its step 0 cannot be made again"
            )
        return NamedLora(newest.info.path, 0.0)

    async def _control_images(
        self, job: TrainingJob, samples: Sequence[Sample], named: Mapping[str, str], caller: Caller
    ) -> dict[str, str]:
        """What requests name each control image, by the trainer's path. Files that were found are uploaded.

        Raises ControlImageRequired that names those that are missing, and what storing an upload raises.
        """
        paths = sorted({path for sample in samples for path in _paths(job, sample)})
        sent = {path: named.get(path) or named.get(file_name(path)) for path in paths}
        images = {path: await self._short_name(image, caller) for path, image in sent.items() if image}
        rest = [path for path in paths if path not in images]
        found = await self._files.in_thread(partial(self._files.control_images, job, rest, caller))
        if missing := [path for path in rest if path not in found]:
            raise ControlImageRequired(
                f"these control images are not below the LoRA root: {', '.join(missing[:MAX_NAMED])}; upload them, and "
                f'send control_images: {{"{file_name(missing[0])}": "upload:<id>", ...}}',
                {"missing": missing[:MAX_NAMED]},
            )
        for path, file in found.items():
            data = await self._files.in_thread(partial(self._files.image, file))
            images[path] = await self._uploaded(data, caller)
        return images

    async def _short_name(self, image: str, caller: Caller) -> str:
        """What names a control image that was sent: itself, or its upload if the body holds the whole image.

        Each sample's request repeats it. Raises ControlImageInvalid, and what storing an upload raises.
        """
        if is_reference(image):
            return image
        return await self._uploaded(await asyncio.to_thread(decode_inline, image, self._max_bytes), caller)

    async def _uploaded(self, data: bytes, caller: Caller) -> str:
        return f"upload:{(await self._uploads.store(data, caller)).sha256}"

    def _request(
        self, redo: Redo, sample: Sample, images: Mapping[str, str], wanted: PreviewsRequest
    ) -> InferenceRequest:
        """The request for a sample's image. Raises InvalidParameter for settings beyond this service's limits."""
        references = [images[path] for path in _paths(redo.job, sample)]
        body: dict[str, Any] = body_of(redo.job, sample, redo.lora, redo.profile, references)
        return request_of(sample, body | {"priority": wanted.priority})


def chosen_samples(job: TrainingJob, numbers: Sequence[int] | None) -> list[Sample]:
    """The samples of these numbers, or all, that can be made again.

    Raises InvalidParameter for a number that the job does not have, and PreviewsImpossible if none is left.
    """
    by_number = {sample.number: sample for sample in job.samples[:MAX_SAMPLES]}
    wanted = sorted(set(by_number if numbers is None else numbers))
    if unknown := [number for number in wanted if number not in by_number]:
        raise InvalidParameter(
            f"samples: there is no sample {unknown[0]}; the training job has the samples 0 to {len(by_number) - 1}",
            {"parameter": "samples", "sample": unknown[0]},
        )
    problems = {number: why_not(job, by_number[number]) for number in wanted}
    left = [by_number[number] for number in wanted if problems[number] is None]
    if not left:
        why = next((problem for problem in problems.values() if problem), "no sample was chosen")
        raise PreviewsImpossible(f"no sample can be made again: {why}")
    return left


def id_of(redo: Redo, step: int, requests: Mapping[int, InferenceRequest]) -> str:
    """The id of previews: the same for the same job, step, weights and requests."""
    whole = [
        redo.job.name,
        step,
        redo.version,
        [[number, digest_of(request)] for number, request in sorted(requests.items())],
    ]
    return f"{step}-{hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]}"


def key_of(previews_id: str, number: int, attempt: int) -> str:
    """The idempotency key of the request for a sample."""
    return f"training-preview:{previews_id}:{number}:{attempt}"


def _paths(job: TrainingJob, sample: Sample) -> list[str]:
    return [] if job.model is None else control_paths(sample, MODELS[job.model])
