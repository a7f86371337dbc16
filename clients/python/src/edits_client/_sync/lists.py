# Generated from ../_async by `python -m tools.client_code`: change that file.
"""What the service has: the methods of the client that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from urllib.parse import quote

from edits_client._sync import training
from edits_client._sync.transport import Transport
from edits_client.models import (
    CalibrationList,
    History,
    HistoryEntry,
    LoraInfo,
    LoraList,
    ModelInfo,
    ModelList,
    OperationStatus,
    PresetInfo,
    PresetList,
    PreviewsStatus,
    TenantUsage,
    TrainingJobEntry,
    TrainingJobInfo,
    UsageList,
)


class Lists:
    """The base of the client. Nothing here changes anything on the service."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def models(self) -> list[ModelInfo]:
        """The models that the service serves."""
        return (self._transport.get(ModelList, "/v1/models")).models

    def presets(self) -> list[PresetInfo]:
        """The presets that the caller may use."""
        return (self._transport.get(PresetList, "/v1/presets")).presets

    def loras(self, search: str = "") -> Iterator[LoraInfo]:
        """The LoRA files of the service with what their headers say, by path. Pages are read as they are needed."""
        params = {"search": search}
        while True:
            page = self._transport.get(LoraList, "/v1/loras", params)
            for lora in page.loras:
                yield lora
            if page.next_cursor is None:
                return
            params = params | {"cursor": page.next_cursor}

    def lora(self, path: str) -> LoraInfo:
        """One LoRA file of the service. Raises LoraNotFound."""
        return self._transport.get(LoraInfo, f"/v1/loras/{quote(path)}")

    def history(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        lora: str | None = None,
        tenant: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[HistoryEntry]:
        """Requests of the key's tenant, newest first. Pages are read as they are needed. Raises HistoryUnavailable."""
        given = {
            "status": status,
            "model": model,
            "lora": lora,
            "tenant": tenant,
            "since": since and since.isoformat(),
            "until": until and until.isoformat(),
        }
        params = {name: value for name, value in given.items() if value is not None}
        while True:
            page = self._transport.get(History, "/v1/requests", params)
            for entry in page.requests:
                yield entry
            if page.next_cursor is None:
                return
            params = params | {"cursor": page.next_cursor}

    def usage(self) -> list[TenantUsage]:
        """GPU seconds and images of the key's tenant, or of every tenant for an operator. Raises HistoryUnavailable."""
        return (self._transport.get(UsageList, "/v1/usage")).usage

    def operation(self) -> OperationStatus:
        """How the service is doing: models, editors, queues, and requests that failed, as far as the key may see."""
        return self._transport.get(OperationStatus, "/v1/operation")

    def calibrations(self) -> CalibrationList:
        """How far the images of each tier are from the exact ones, and how much faster they are, as it was measured."""
        return self._transport.get(CalibrationList, "/v1/calibrations")

    def training_jobs(self, search: str = "") -> Iterator[TrainingJobEntry]:
        """The training jobs below the service's LoRA root, by name. Pages are read as they are needed."""
        for job in training.list_jobs(self._transport, search):
            yield job

    def training_job(self, name: str) -> TrainingJobInfo:
        """One training job: checkpoints, sample images, and the sample settings as bodies for `submit_body`.

        Raises TrainingJobNotFound.
        """
        return training.get_job(self._transport, name)

    def sample_image(self, name: str, file: str, *, thumbnail: bool = False) -> bytes:
        """The file of an image that the trainer made, or a small JPEG of it. Raises SampleNotFound."""
        return training.get_sample_image(self._transport, name, file, thumbnail=thumbnail)

    def previews_status(self, name: str, previews_id: str) -> PreviewsStatus:
        """Where previews stand that were started. Raises PreviewsNotFound."""
        return training.get_status(self._transport, name, previews_id)
