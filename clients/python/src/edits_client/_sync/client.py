# Generated from ../_async by `python -m tools.client_code`: change that file.
"""The client of an edits service."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel
from typing_extensions import Self, Unpack

from edits_client._sync import training
from edits_client._sync.clock import in_thread
from edits_client._sync.job import Job
from edits_client._sync.lists import Lists
from edits_client._sync.sweep import Sweep, sweep_body
from edits_client._sync.transport import Transport
from edits_client._sync.uploads import Uploads
from edits_client.bodies import Options, as_prompts, new_idempotency_key, only_model, request_body
from edits_client.errors import ControlImageInvalid
from edits_client.images import Image
from edits_client.models import (
    CalibrationRunInfo,
    Explanation,
    InferenceRequest,
    PreviewsStarted,
    PreviewsStatus,
    Submitted,
    SweepAxes,
    SweepCreated,
    SweepList,
    SweepSummary,
    Upload,
)
from edits_client.retries import DEFAULT_RETRIES, Retries
from edits_client.sources import ImageSource, LocalImage, as_sources, read_source
from edits_client.version import VERSION

M = TypeVar("M", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"
# Time limits of one call (s). Uploads write for longer; a service that is busy answers within seconds.
CALL_TIMEOUT = httpx2.Timeout(30.0, write=120.0)
# How long `edit` and `Job.result` wait by default (s): as long as a job of the reference server may take.
RESULT_TIMEOUT_S = 3600.0


class Client(Lists):
    """Edits images on a service. Use it with `with`, or call `close` at the end.

    The URL and the API key come from the arguments, or else from EDITS_URL and EDITS_API_KEY.
    Calls that fail for a reason that passes (connections, 429, 502 to 504) are repeated as `retries` says.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: httpx2.Timeout | float = CALL_TIMEOUT,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """`timeout` is for one call (s). `transport` is for tests and proxies: see httpx2. Raises ValueError for a URL
        that is not of HTTP."""
        self.url = (url or os.environ.get("EDITS_URL") or DEFAULT_URL).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the service's URL must start with http:// or https://: {self.url!r}")
        key = api_key or os.environ.get("EDITS_API_KEY")
        headers = {"User-Agent": f"edits-client/{VERSION}"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, transport=transport)
        super().__init__(Transport(http, retries))
        self._uploads = Uploads(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.http.close()

    def edit(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str,
        *,
        timeout: float | None = RESULT_TIMEOUT_S,
        **options: Unpack[Options],
    ) -> Image:
        """Edit one image and wait for the result, by default a PNG in the shape of the first control image.

        `images` is one control image or a list of up to three, empty for a model that needs none. Raises ApiError for
        a refused or failed request, WaitTimeout after `timeout` seconds (the request goes on), and ValueError for
        options that make more than one image.
        """
        if len(options.get("seeds", ())) > 1:
            raise ValueError("edit makes one image; use submit for several seeds")
        options.setdefault("output_format", "png")
        job = self.submit(images, prompt, **options)
        return (job.result(timeout))[0]

    def submit(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompts: str | Iterable[str],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Send a request and return at once. It makes one image per prompt and seed.

        Local images are uploaded once and then named. The same `idempotency_key` and body are the same request,
        however often they are sent; by default each call has its own. Raises ApiError, OSError for a file that cannot
        be read, and ValueError.
        """
        key = idempotency_key or new_idempotency_key()
        headers = {"Idempotency-Key": key}
        submitted = self._with_images(Submitted, "/v1/inference", images, prompts, options, headers)
        return Job(self._transport, submitted.request_id)

    def explain(
        self, images: ImageSource | Sequence[ImageSource], prompts: str | Iterable[str], **options: Unpack[Options]
    ) -> Explanation:
        """What `submit` would do with the same arguments: every effective value, and notes. Nothing is made."""
        return self._with_images(Explanation, "/v1/explain", images, prompts, options, {})

    def submit_body(self, body: Mapping[str, Any] | InferenceRequest, *, idempotency_key: str | None = None) -> Job:
        """Send the body of `POST /v1/inference` as it is, such as the `effective.request` of an earlier image."""
        if isinstance(body, InferenceRequest):
            body = body.model_dump(mode="json", exclude_unset=True)
        headers = {"Idempotency-Key": idempotency_key or new_idempotency_key()}
        submitted = self._transport.post(Submitted, "/v1/inference", body, headers)
        return Job(self._transport, submitted.request_id)

    def body(
        self, images: ImageSource | Sequence[ImageSource], prompts: str | Iterable[str], **options: Unpack[Options]
    ) -> dict[str, Any]:
        """The body that `submit` would send for the same arguments, such as the base of a sweep.

        Local images are uploaded.
        """
        sources = in_thread(lambda: [read_source(source) for source in as_sources(images)])
        complete = self._with_defaults(options, has_images=bool(sources))
        return request_body([self._uploads.reference(source) for source in sources], as_prompts(prompts), complete)

    def sweep(
        self,
        base: Mapping[str, Any] | InferenceRequest,
        axes: Mapping[str, Any] | SweepAxes,
        *,
        max_cells: int | None = None,
        idempotency_key: str | None = None,
    ) -> Sweep:
        """Make one image for each combination of the axes' values, and return at once.

        `base` is a body with one prompt, as from `body`. The axes are `checkpoints` (paths, patterns such as
        `my_job/*.safetensors`, None for no LoRA), `multipliers`, `prompts`, `seeds`, `control_images`, `profiles` and
        `qualities`. Nothing is started if one cell would be refused, or if there are more than `max_cells`. Raises
        ApiError.
        """
        headers = {"Idempotency-Key": idempotency_key or new_idempotency_key()}
        body = sweep_body(base, axes, max_cells, dry_run=False)
        created = self._transport.post(SweepCreated, "/v1/sweeps", body, headers)
        return Sweep(self._transport, str(created.sweep_id))

    def plan_sweep(
        self,
        base: Mapping[str, Any] | InferenceRequest,
        axes: Mapping[str, Any] | SweepAxes,
        *,
        max_cells: int | None = None,
    ) -> SweepCreated:
        """How many cells `sweep` would make, and how long GPUs would work on them. Nothing is started."""
        body = sweep_body(base, axes, max_cells, dry_run=True)
        return self._transport.post(SweepCreated, "/v1/sweeps", body)

    def open_sweep(self, sweep_id: str) -> Sweep:
        """A sweep that was started earlier, perhaps by another process. No call is made."""
        return Sweep(self._transport, sweep_id)

    def sweeps(self) -> Iterator[SweepSummary]:
        """Sweeps of the key's tenant, newest first. Pages are read as they are needed. Raises HistoryUnavailable."""
        params: dict[str, str] = {}
        while True:
            page = self._transport.get(SweepList, "/v1/sweeps", params)
            for sweep in page.sweeps:
                yield sweep
            if page.next_cursor is None:
                return
            params = {"cursor": page.next_cursor}

    def job(self, request_id: str) -> Job:
        """A request that was submitted earlier, perhaps by another process. No call is made."""
        return Job(self._transport, request_id)

    def upload(self, image: ImageSource) -> Upload:
        """Store a control image; then `upload:<id>` names it. The same file is stored once."""
        local = in_thread(lambda: read_source(image))
        if isinstance(local, str):
            raise ValueError(f"{local!r} names an image that is not here; give its bytes or its path")
        return self._uploads.store(local)

    def delete_upload(self, upload_id: str) -> None:
        """Delete an upload. Requests that name it already go on. Raises UploadNotFound."""
        self._transport.call("DELETE", f"/v1/uploads/{quote(upload_id, safe='')}", lambda answer: None)
        self._uploads.forget(upload_id)

    def previews(
        self,
        name: str,
        step: int,
        *,
        samples: Sequence[int] | None = None,
        control_images: Mapping[str, ImageSource] = {},
        priority: str | None = None,
        timeout: float | None = RESULT_TIMEOUT_S,
    ) -> PreviewsStatus:
        """Make the previews of a checkpoint again and wait for them: pairs of theirs and ours, and a summary.

        `samples` are numbers, by default all. `control_images` are those that are not below the LoRA root, by the
        trainer's path or file name. The same call again makes nothing again. Raises PreviewsImpossible,
        ControlImageRequired that names what is missing, other ApiErrors, and WaitTimeout after `timeout` seconds.
        """
        started = self.start_previews(name, step, samples=samples, control_images=control_images, priority=priority)
        return training.wait(self._transport, name, started.id, timeout)

    def start_previews(
        self,
        name: str,
        step: int,
        *,
        samples: Sequence[int] | None = None,
        control_images: Mapping[str, ImageSource] = {},
        priority: str | None = None,
    ) -> PreviewsStarted:
        """The same as `previews`, without waiting."""
        sources = {key: in_thread(partial(read_source, source)) for key, source in control_images.items()}
        references = {key: self._uploads.reference(source) for key, source in sources.items()}
        return training.start(self._transport, name, step, samples, references, priority)

    def start_calibration(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> CalibrationRunInfo:
        """Measure tiers through the queue, for operators. `body` is that of `POST /v1/calibrations`."""
        headers = {"Idempotency-Key": idempotency_key or new_idempotency_key()}
        return self._transport.post(CalibrationRunInfo, "/v1/calibrations", dict(body), headers)

    def _with_images(
        self,
        kind: type[M],
        path: str,
        images: ImageSource | Sequence[ImageSource],
        prompts: str | Iterable[str],
        options: Options,
        headers: dict[str, str],
    ) -> M:
        """The answer to a body that names these images. An upload that has expired meanwhile is made again."""
        sources = in_thread(lambda: [read_source(source) for source in as_sources(images)])
        complete = self._with_defaults(options, has_images=bool(sources))
        texts = as_prompts(prompts)
        body = request_body([self._uploads.reference(source) for source in sources], texts, complete)
        try:
            return self._transport.post(kind, path, body, headers)
        except ControlImageInvalid:
            uploads = [source for source in sources if isinstance(source, LocalImage)]
            if not uploads:
                raise
        # An upload has expired since it was made: the service checked each image when it was sent.
        for upload in uploads:
            self._uploads.send(upload)
        return self._transport.post(kind, path, body, headers)

    def _with_defaults(self, options: Options, *, has_images: bool) -> Options:
        """The options with this client's defaults: the only model that fits, and the shape of the control image."""
        options = options.copy()
        preset = options.get("preset")
        if preset is None and options.get("model") is None:
            options["model"] = only_model(self.models(), has_images=has_images)
        if has_images and options.get("size") is None and not self._has_size(options):
            options["size"] = "input"
        return options

    def _has_size(self, options: Options) -> bool:
        """Whether the options name a size in pixels among their further fields, or a preset that has a size."""
        if {"width", "height", "size"} & options.get("prompt_extra", {}).keys():
            return True
        preset = options.get("preset")
        return preset is not None and any(item.name == preset and item.size for item in self.presets())
