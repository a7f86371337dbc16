"""Stored records, models and presets as the bodies of the HTTP contract."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from serve_app.config import TIER_NAMES, AppConfig, TierConfig, TierName
from serve_app.intake.admission.quality import available
from serve_app.intake.presets import KnownPreset
from serve_app.intake.signed_urls import SignedUrls
from serve_app.jobs.records import ImageRecord, RequestRecord, RequestState
from serve_app.models.registry import ModelSpec
from serve_app.models.repeat_request import without_url_secrets
from serve_app.schemas.answers import ImageOutput, Outputs, Progress, RequestResult, RequestStatus
from serve_app.schemas.catalogue import (
    ModelInfo,
    OpenAiModel,
    PresetInfo,
    PresetLora,
    PresetMaxLoss,
    PresetProblem,
    TierInfo,
)
from serve_app.tasks import ImageStage, Status

# The stages of an image in which there may be a step preview.
STAGES_WITH_PREVIEWS = (ImageStage.DENOISING, ImageStage.DECODING)
# The smallest prediction for a request that has not ended, and what predictions are rounded to (s).
SHORTEST_ETA_S = 0.1
# When the first version of this service was released (s since the epoch): OpenAI's clients want a time for each model.
FIRST_RELEASE = 1795910400
PRESETS_OWNER = "presets"


@dataclass(frozen=True)
class Links:
    """How answers name files: what their URLs start with, and whether they show paths on the server.

    With API keys, URLs of images are signed.
    """

    base_url: str
    shows_paths: bool
    signed_urls: SignedUrls | None = None

    @classmethod
    def of(cls, config: AppConfig, base_url: str, signed_urls: SignedUrls) -> Self:
        """For a client that reaches the service at `base_url`. With API keys, answers show no paths on the server."""
        return cls(base_url, config.auth.keys_file is None, signed_urls)

    def image(self, tenant: str, request_id: str, index: int) -> str:
        """The URL of an image of a request of this tenant."""
        return self._url(tenant, f"/v1/requests/{request_id}/images/{index}")

    def preview(self, tenant: str, request_id: str, index: int) -> str:
        """The URL of the step preview of an image."""
        return self._url(tenant, f"/v1/requests/{request_id}/images/{index}/preview")

    def control_image(self, tenant: str, request_id: str, index: int) -> str:
        """The URL of a control image of a request."""
        return self._url(tenant, f"/v1/requests/{request_id}/control-images/{index}")

    def _url(self, tenant: str, path: str) -> str:
        return self.base_url + (path if self.signed_urls is None else self.signed_urls.signed(tenant, path))


def status_of(state: RequestState, editors: int, links: Links) -> RequestStatus:
    """The status and progress of a request. `editors` is how many editors that can make its images run."""
    tenant, request_id = state.tenant, state.request_id
    more: dict[str, Any] = {
        "progress": Progress.model_validate(state, from_attributes=True),
        "eta_s": eta(state, editors),
        "finished_images": [{"image": n, "url": links.image(tenant, request_id, n)} for n in state.finished],
        "preview_url": None,
    }
    if state.current is not None and state.stage in STAGES_WITH_PREVIEWS:
        more["preview_url"] = links.preview(tenant, request_id, state.current)
    return RequestStatus.model_validate(vars(state) | more)


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
    url = links.image(record.tenant, record.id, image.index)
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
    if not record.purged:
        metadata["control_images"] = [
            {"sha256": sha256, "url": links.control_image(record.tenant, record.id, index)}
            for index, sha256 in enumerate(control_images_of(record))
        ]
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


def control_images_of(record: RequestRecord) -> list[str]:
    """The digests (hex) of a request's control images: each once, in the order in which the prompts name them."""
    return list(dict.fromkeys(sha256 for image in record.images for sha256 in image.plan.control_images))


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


def model_info(spec: ModelSpec, config: AppConfig) -> ModelInfo:
    """A served model, with the limits of the service on requests for it."""
    limits = {"max_loras": config.max_loras_per_request, "requires_lora": config.require_lora}
    model = config.served(spec.id)
    tiers = [tier_info(name, model.tiers[name]) for name in TIER_NAMES if name in model.tiers]
    more = {"requires_control_image": spec.requires_control_image, "qualities": available(model), "tiers": tiers}
    return ModelInfo.model_validate(asdict(spec) | limits | more)


def tier_info(name: TierName, tier: TierConfig) -> TierInfo:
    """What clients choose a tier by. Its LoRA is named only with images: in notes and in `effective[].loras`."""
    return TierInfo(
        quality=name,
        sample_steps=tier.steps,
        guidance_scale=tier.guidance_scale,
        sampler=tier.sampler,
        quantization=tier.quantization,
        feature_cache=tier.feature_cache,
        guidance_gate=tier.guidance_gate,
        needs_calibration=tier.uncalibrated == "refuse",
    )


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
    most = known.fields.get("max_loss")
    max_loss = most and PresetMaxLoss(psnr_db=most.psnr_db, ssim=most.ssim)
    changes = {"name": known.name, "loras": shown, "problem": problem, "max_loss": max_loss}
    return PresetInfo(**known.fields | changes)
