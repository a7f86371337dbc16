"""A request's record as OpenAI's images API tells it. Pure, and without the images themselves."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from serve_app.errors import EditError, ErrorDescription, ImageNotFound, RequestCanceled, describe, status_of
from serve_app.intake.openai.images import EDITS, FIELDS, ignored_names
from serve_app.jobs.records import ImageRecord, RequestRecord
from serve_app.schemas.openai import ImagesAnswer, ImagesCall, ImagesUsage, InputTokens
from serve_app.schemas.records import MeasuredLoss
from serve_app.tasks import EditDone, Status

# What an answer calls the quality that was made.
QUALITY_NAMES = {"exact": "high", "lossy": "medium", "balanced": "medium", "fast": "low", "turbo": "low"}
BACKGROUND = "opaque"
# The format of step previews, whatever that of the image is.
PREVIEW_FORMAT = "jpeg"
# The side of the square of pixels that one token of the transformer stands for.
TOKEN_PIXELS = 16


def answer_of(record: RequestRecord, call: ImagesCall) -> dict[str, Any]:
    """The answer to a call whose request has succeeded, without `data`. Raises ImageNotFound."""
    images = finished_images(record)
    answer = ImagesAnswer(
        created=int(record.finished_at or record.created_at),
        background=BACKGROUND,
        output_format=images[0].format,
        quality=quality_of(record.images[0]),
        size=size_of(images[0].width, images[0].height),
        usage=usage_of(images),
        tier=record.images[0].plan.quality,
        loss=_loss(record.images[0]),
        request_id=record.id,
        ignored=ignored_in(record, call),
        notes=record.notes.get("notes", []),
        data=[],
    )
    return answer.model_dump(mode="json", exclude={"data"})


def partial_event(route: str, image: ImageRecord, number: int, now: float) -> dict[str, Any]:
    """The event of a preview, the preview itself left out. It is the `number`-th of its image, from 0."""
    size = size_of(image.plan.width, image.plan.height)
    facts = _event(route, "partial_image", image, now) | {"size": size, "quality": quality_of(image)}
    return facts | {"output_format": PREVIEW_FORMAT, "partial_image_index": number}


def completed_event(route: str, image: ImageRecord, done: EditDone, now: float) -> dict[str, Any]:
    """The event of a finished image, the image itself left out."""
    loss = _loss(image)
    facts = {
        "size": size_of(done.width, done.height),
        "quality": quality_of(image),
        "output_format": done.format,
        "seed": done.seed,
        "usage": usage_of([done]).model_dump(),
        "tier": image.plan.quality,
        "loss": loss and loss.model_dump(mode="json"),
    }
    return _event(route, "completed", image, now) | facts


def failure_of(record: RequestRecord) -> ErrorDescription:
    """Why a request that has ended has no result."""
    if record.status == Status.CANCELED:
        return describe(RequestCanceled(f"request {record.id} was cancelled", {"request_id": record.id}))
    code, message = record.error_code or EditError.code, record.error or "the edit failed"
    return ErrorDescription(code, message, status_of(code), details=record.error_details or {})


def finished_images(record: RequestRecord) -> list[EditDone]:
    """The images of a request that has succeeded. Raises ImageNotFound if they were deleted since."""
    images = [image.result for image in record.images if image.result is not None]
    if len(images) < len(record.images):
        raise ImageNotFound(f"the images of request {record.id} were deleted", {"request_id": record.id})
    return images


def ignored_in(record: RequestRecord, call: ImagesCall) -> list[str]:
    """The fields of a call that had no effect, by the call's names for them."""
    of_request = record.notes.get("ignored", ())
    return sorted({FIELDS.get(name, name) for name in of_request} | set(ignored_names(call)))


def usage_of(images: Sequence[EditDone]) -> ImagesUsage:
    """The tokens of finished images together."""
    counts = [_tokens(image) for image in images]
    control, text, target = (sum(count[i] for count in counts) for i in range(3))
    return ImagesUsage(
        input_tokens=control + text,
        input_tokens_details=InputTokens(image_tokens=control, text_tokens=text),
        output_tokens=target,
        total_tokens=control + text + target,
    )


def quality_of(image: ImageRecord) -> str:
    """The quality of an image, as OpenAI names it."""
    return QUALITY_NAMES[image.plan.quality]


def _loss(image: ImageRecord) -> MeasuredLoss | None:
    loss = image.plan.loss
    return None if loss is None else MeasuredLoss.model_validate(asdict(loss))


def size_of(width: int, height: int) -> str:
    return f"{width}x{height}"


def _event(route: str, what: str, image: ImageRecord, now: float) -> dict[str, Any]:
    kind = "image_edit" if route == EDITS else "image_generation"
    return {
        "type": f"{kind}.{what}",
        "created_at": int(now),
        "background": BACKGROUND,
        # OpenAI streams one image; this tells several apart.
        "index": image.index,
    }


def _tokens(image: EditDone) -> tuple[int, int, int]:
    """Tokens of the control images, of the text (an estimate), and of the image itself."""
    known = image.effective.get("tokens", {})
    target = (image.width // TOKEN_PIXELS) * (image.height // TOKEN_PIXELS)
    return known.get("control", 0), known.get("text_estimated", 0), known.get("target", target)
