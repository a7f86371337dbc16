"""Stored records, models and presets as the bodies of the HTTP contract."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from serve_app.config import AppConfig
from serve_app.intake.presets import KnownPreset
from serve_app.jobs.records import ImageRecord, RequestRecord, RequestState
from serve_app.models.registry import ModelSpec
from serve_app.models.repeat_request import without_url_secrets
from serve_app.schemas.answers import (
    ImageOutput,
    OpenAiModel,
    Outputs,
    PresetInfo,
    PresetLora,
    PresetProblem,
    Progress,
    RequestResult,
    RequestStatus,
)
from serve_app.tasks import Status

# The smallest prediction for a request that has not ended, and what predictions are rounded to (s).
SHORTEST_ETA_S = 0.1
# When the first version of this service was released (s since the epoch): OpenAI's clients want a time for each model.
FIRST_RELEASE = 1795910400
PRESETS_OWNER = "presets"


@dataclass(frozen=True)
class Links:
    """How answers name files: what their URLs start with, and whether they show paths on the server."""

    base_url: str
    shows_paths: bool

    @classmethod
    def of(cls, config: AppConfig, base_url: str) -> Self:
        """For a client that reaches the service at `base_url`. With API keys, answers show no paths on the server."""
        return cls(base_url, shows_paths=config.auth.keys_file is None)


def status_of(state: RequestState, editors: int) -> RequestStatus:
    """The status and progress of a request. `editors` is how many editors of its model are running."""
    progress = Progress.model_validate(state, from_attributes=True)
    return RequestStatus.model_validate({**vars(state), "progress": progress, "eta_s": eta(state, editors)})


def eta(state: RequestState, editors: int) -> float | None:
    """Predicted seconds until the request ends, never 0.

    None once it has ended, and before the first edit of its model was measured.
    """
    if state.status.ended or not state.speed:
        return None
    # All editors share the queue; each image that is being made has one editor.
    at_once = max(editors, 1) if state.queue_position is not None else 1
    return max(SHORTEST_ETA_S, round(state.work_left / state.speed / at_once, 1))


def output_of(record: RequestRecord, image: ImageRecord, links: Links) -> ImageOutput | None:
    """A finished image, None if it is not finished."""
    if image.result is None:
        return None
    url = f"{links.base_url}/v1/requests/{record.id}/images/{image.index}"
    return ImageOutput(
        format=image.result.format,
        width=image.result.width,
        height=image.result.height,
        file_path=image.result.url if links.shows_paths else url,
        seed=image.result.seed,
        url=url,
    )


def result_of(record: RequestRecord, links: Links) -> RequestResult:
    """The result of a request. `outputs` is null unless it succeeded and its images are still stored."""
    outputs = [output_of(record, image, links) for image in record.images]
    finished = [output for output in outputs if output is not None]
    metadata = metadata_of(record)
    if record.status in (Status.FAILED, Status.CANCELED):
        metadata["partial"] = [{"image": i} | output.model_dump() for i, output in enumerate(outputs) if output]
    has_outputs = record.status == Status.SUCCEEDED and not record.purged
    return RequestResult(
        request_id=record.id,
        status=record.status,
        outputs=Outputs(images=finished) if has_outputs else None,
        error=record.error,
        error_code=record.error_code,
        error_details=record.error_details,
        created_at=record.created_at,
        finished_at=record.finished_at,
        metadata=metadata,
    )


def metadata_of(record: RequestRecord) -> dict[str, Any]:
    """The `metadata` of a result. Its lists have one entry per prompt, empty until the image is finished."""
    results = [image.result for image in record.images]
    timings = [{stage: round(s, 4) for stage, s in done.timings.items()} if done else {} for done in results]
    metadata: dict[str, Any] = {
        "model": record.model,
        "inference_time": None,
        "timings": {"prompts": timings},
        "gpu_seconds": round(record.gpu_seconds, 3),
        "effective": [done.effective if done else {} for done in results],
        "runtime": [done.runtime if done else {} for done in results],
        "attempts_lost": [list(image.reasons) for image in record.images],
    }
    if record.finished_at is not None and record.started_at is not None:
        metadata["inference_time"] = round(record.finished_at - record.started_at, 3)
    if record.purged:
        metadata["purged"] = True
    return metadata | record.notes


def openai_models(models: Iterable[ModelSpec], presets: Iterable[KnownPreset]) -> list[OpenAiModel]:
    """What OpenAI's clients may send as `model`: the models, then the presets that are not broken."""
    owners = {spec.id: spec.base_model.partition("/")[0] for spec in models}
    owners |= {known.name: PRESETS_OWNER for known in presets if known.problem is None}
    return [OpenAiModel(id=name, created=FIRST_RELEASE, owned_by=owner) for name, owner in owners.items()]


def preset_of(known: KnownPreset) -> PresetInfo:
    """A preset that can be read as a request, with the fields that it sets."""
    loras = known.template.loras if known.template else []
    shown = [
        PresetLora(path=without_url_secrets(lora.path), network_multiplier=lora.network_multiplier) for lora in loras
    ]
    problem = known.problem and PresetProblem(code=known.problem.code, message=known.problem.message)
    return PresetInfo(**known.fields | {"name": known.name, "loras": shown, "problem": problem})
