"""Bodies about training jobs: what ai-toolkit left in a folder, and previews that are made again."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from serve_app.schemas.answers import ErrorCode, ErrorText, ImageUrl, NextCursor
from serve_app.schemas.documented import Answer, DescribedBy
from serve_app.schemas.requests import ControlImageText, InferenceRequest, Tolerant
from serve_app.schemas.text import Url
from serve_app.tasks import Priority, Status

MAX_STEP = 10**12 - 1
MAX_CHOSEN, MAX_NAMED = 1_000, 1_000
JOB = "my_job"
JOB_URL = f"http://127.0.0.1:8000/v1/training-jobs/{JOB}"
PREVIEWS_ID = "500-0f8fad5bd9cb469fa16570867728950e"

JobName = Annotated[str, Field(description="The path of the job's folder below the LoRA root.")]
StepNumber = Annotated[int, Field(description="The training step.")]
SampleNumber = Annotated[int, Field(description="The number of the sample, from 0.")]


class WeightsFile(Answer):
    """A file of weights that the trainer wrote."""

    path: str = Field(description="What `loras[].path` of a request names.")
    step: int | None = Field(
        description="The training step: by the name of the file, or its header, or the training config."
    )
    size_bytes: int | None = Field(description="The size of the file; null for one that cannot be read.")
    state: Literal["complete", "incomplete", "unreadable", "unknown"] = Field(
        description="`incomplete`: the trainer is still writing it, or it was cut off. `unknown`: its header was not "
        "read; the list of all jobs reads only the newest file of each."
    )
    fits: list[str] | None = Field(description="The ids of the served models that it fits; null if it was not read.")
    problem: str | None = Field(description="Why it cannot be used, in words; null if it can, or was not read.")


class TrainingJobEntry(Answer):
    """A training job in the list of all."""

    name: JobName
    url: str = Field(description="Where the whole job is.")
    model: str | None = Field(description="The id of the model that it trains; null if it is none of the family.")
    base: str | None = Field(description="The checkpoint that the training config names.")
    is_served: bool = Field(description="Whether this service serves that model.")
    trigger_word: str | None = Field(description="The trigger word of the training config.")
    trainer_version: str | None = Field(description="The version of ai-toolkit that wrote the newest file.")
    profile: str = Field(description="The profile of that version, which makes the trainer's own pixels.")
    checkpoints: list[WeightsFile] = Field(description="The checkpoints, by step.")
    final: WeightsFile | None = Field(description="The file that the trainer writes at the end.")
    sample_steps: list[int] = Field(description="The steps that have sample images, also without their checkpoint.")
    problem: str | None = Field(description="Why the samples cannot be read from the training config, in words.")


class TrainingJobList(Answer):
    """A page of training jobs, by name."""

    training_jobs: list[TrainingJobEntry] = Field(description="The jobs of this page.")
    next_cursor: NextCursor


class SampleImageInfo(Answer):
    """An image that the trainer made while it trained."""

    step: StepNumber
    sample: SampleNumber
    file: str = Field(description="The name of the file.")
    url: str = Field(description="Where a client downloads the image.")
    thumbnail_url: str = Field(description="Where a client downloads a JPEG of at most 300x300 pixels.")


class SampleControlImage(Answer):
    """A control image that a sample names."""

    path: str = Field(description="The path on the training machine.")
    found: str | None = Field(description="The file below the LoRA root that it means; null if there is no single one.")
    reference: str | None = Field(
        description="What the request names: the file is uploaded under this id when previews are made."
    )


class FactInfo(Answer):
    """Something to know when a preview is compared."""

    code: str = Field(description="A short name of the fact.")
    text: str = Field(description="The fact, in words.")
    differs: bool = Field(description="Whether it makes images differ, although all else is done as in training.")


class SampleInfo(Answer):
    """The settings of one sample, by the trainer's rules."""

    sample: SampleNumber
    prompt: str = Field(description="The prompt, with the trigger word and without flags.")
    body: Annotated[dict[str, Any], DescribedBy(InferenceRequest)] | None = Field(
        description="The body of `POST /v1/inference` that makes this image with the newest file of weights. Control "
        "images that were not found are left out. Null if the sample cannot be made again."
    )
    control_images: list[SampleControlImage] = Field(description="Its control images, in the order of the request.")
    problem: str | None = Field(description="Why it cannot be made again, in words.")
    facts: list[FactInfo] = Field(description="What there is to know when it is compared.")


class TrainingJobInfo(TrainingJobEntry):
    """A training job: its files, its sample images, and the settings of its samples."""

    sample_images: list[SampleImageInfo] = Field(description="The newest image of each step and sample.")
    samples: list[SampleInfo] = Field(description="The settings of the samples, by number.")


class PreviewsRequest(Tolerant):
    """Which previews to make again."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"step": 500}]})

    step: int = Field(ge=0, le=MAX_STEP, description="The training step. 0 is the model without a LoRA.")
    samples: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, max_length=MAX_CHOSEN, description="The numbers of the samples. Default: all."
    )
    control_images: dict[Url, ControlImageText] = Field(
        {},
        max_length=MAX_NAMED,
        description="Control images that are not below the LoRA root: by the trainer's path or file name, each as in a "
        "request, such as upload: and the id of an upload. Default: none.",
    )
    priority: Priority = Field(Priority.BULK, description="The priority of the requests.")


class PreviewsStarted(Answer):
    """Previews that are being made."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": PREVIEWS_ID, "status_url": f"{JOB_URL}/previews/{PREVIEWS_ID}"}]}
    )

    id: str = Field(description="The id of these previews. The same body has the same id, and makes nothing again.")
    status_url: str = Field(description="Where to poll their status.")


class TheirImage(Answer):
    """The trainer's image of a pair."""

    file: str = Field(description="The name of the file.")
    url: str = Field(description="Where a client downloads it.")


class OurImage(Answer):
    """This service's image of a pair."""

    request_id: str = Field(description="The id of the request that makes it.")
    status: Status = Field(description="Where this request stands.")
    url: ImageUrl | None = Field(description="Where a client downloads the image; null until it is finished.")
    error: ErrorText
    error_code: ErrorCode


class PairComparison(Answer):
    """How far two images are apart, after ours was saved as the trainer saved its own."""

    is_equal: bool = Field(description="Whether all pixels are equal.")
    equal_share: float = Field(description="The share of pixels that are equal, from 0 to 1.")
    psnr_db: float | None = Field(description="The peak signal-to-noise ratio (dB); null if all pixels are equal.")


class Pair(Answer):
    """The trainer's image of a sample, and this service's."""

    sample: SampleNumber
    theirs: TheirImage | None = Field(description="The trainer's image; null if there is none of this step.")
    ours: OurImage = Field(description="This service's image.")
    comparison: PairComparison | None = Field(description="How far they are apart; null until both are there.")
    problem: str | None = Field(description="Why they cannot be compared, in words.")
    facts: list[FactInfo] = Field(description="What there is to know when they are compared.")


class NotRedone(Answer):
    """A sample that cannot be made again."""

    sample: SampleNumber
    problem: str = Field(description="The reason, in words.")


class PreviewsStatus(Answer):
    """Previews that were made again, next to the trainer's own."""

    id: str = Field(description="The id of these previews.")
    training_job: JobName
    step: StepNumber
    status: Status = Field(description="Where the requests stand, all together.")
    pairs: list[Pair] = Field(description="One pair for each sample that is made again.")
    not_redone: list[NotRedone] = Field(description="The job's samples that no service can make again.")
    summary: str = Field(description="What came out, in words.")
