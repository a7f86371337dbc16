"""One edit with the client that openapi-python-client generates: `python edit.py BASE_URL KEY IMAGE RESULTS`.

Run with the generated package on the path, by a Python that has its dependencies. IMAGE is the file of a control image,
RESULTS a file with a list of results that earlier versions of the service answered. Prints what it got as JSON.
"""

import base64
import io
import json
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
from image_edits_client import AuthenticatedClient
from image_edits_client.api.inference import explain, submit
from image_edits_client.api.models import models
from image_edits_client.api.requests import cancel, get_image, get_result, get_status
from image_edits_client.api.uploads import upload
from image_edits_client.models import (
    ErrorBody,
    Explanation,
    InferenceRequest,
    Lora,
    ModelList,
    OutputFormat,
    Prompt,
    RequestResult,
    RequestStatus,
    ShapeErrors,
    Status,
    SubmitFilesBody,
    Submitted,
    SubmittedStatus,
    Upload,
    UploadFilesBody,
)
from image_edits_client.types import File

DEADLINE_S = 30


def make_edit(client: AuthenticatedClient, image: bytes) -> dict[str, object]:
    """Submit a request, follow it, and download its image, each with the call that was generated for it."""
    prompt = Prompt(prompt="make it night", ctrl_img=base64.b64encode(image).decode(), width=64, sample_steps=2)
    body = InferenceRequest(
        model="qwen_image_edit",
        loras=[Lora(path="job/lora.safetensors")],
        prompts=[prompt],
        output_format=OutputFormat.PNG,
    )
    submitted = submit.sync(client=client, body=body, idempotency_key="once")
    assert isinstance(submitted, Submitted), submitted
    assert submitted.status == SubmittedStatus.QUEUED
    status = follow(client, submitted.request_id)
    result = get_result.sync(submitted.request_id, client=client)
    assert isinstance(result, RequestResult), result
    [output] = result.outputs.images
    downloaded = get_image.sync(submitted.request_id, 0, client=client)
    assert isinstance(downloaded, File), downloaded
    # A repeat is answered with where the request stands, which is another value of the same type.
    repeated = submit.sync(client=client, body=body, idempotency_key="once")
    assert isinstance(repeated, Submitted), repeated
    assert repeated.status == SubmittedStatus.SUCCEEDED
    return {
        "status": status.status.value,
        "seconds": (result.finished_at - result.created_at).total_seconds(),
        "image": base64.b64encode(downloaded.payload.read()).decode(),
        "format": output.format_,
        "model": result.metadata.model,
        "by_signed_url": base64.b64encode(httpx.get(output.url).content).decode(),
        "additional": sorted(body.additional_properties),
    }


def follow(client: AuthenticatedClient, request_id: str) -> RequestStatus:
    """Poll until the request has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        status = get_status.sync(request_id, client=client)
        assert isinstance(status, RequestStatus), status
        if status.status in (Status.SUCCEEDED, Status.FAILED, Status.CANCELED):
            return status
        time.sleep(0.05)
    raise AssertionError("the request did not end")


def read_errors(client: AuthenticatedClient) -> dict[str, object]:
    """What the client makes of refusals: a request that is not there, and two bodies that cannot be served."""
    missing = cancel.sync("0" * 32, client=client)
    refused = submit.sync(client=client, body=InferenceRequest(model="flux", loras=[], prompts=[Prompt(prompt="a")]))
    shapeless = submit.sync(client=client, body=InferenceRequest(prompts=[]))
    assert isinstance(missing, ErrorBody), missing
    assert isinstance(refused, ErrorBody), refused
    assert isinstance(shapeless, ShapeErrors), shapeless
    return {
        "errors": [missing.detail.error.code, refused.detail.error.code],
        "supported": refused.detail.error.details["supported_models"],
        "fault": shapeless.detail[0].type_,
    }


def read_records(client: AuthenticatedClient, image: bytes) -> dict[str, object]:
    """What the client makes of an explanation and of a list."""
    prompt = Prompt(prompt="a", ctrl_img=base64.b64encode(image).decode(), width=64, sample_steps=2)
    body = InferenceRequest(model="qwen_image_edit", loras=[Lora(path="job/lora.safetensors")], prompts=[prompt])
    explanation = explain.sync(client=client, body=body)
    assert isinstance(explanation, Explanation), explanation
    [record] = explanation.effective
    # A record contains the request that makes the image again, as the type that `submit` takes.
    assert isinstance(record.request, InferenceRequest)
    listed = models.sync(client=client)
    assert isinstance(listed, ModelList), listed
    return {
        "sizes": [list(size) for size in record.control_images[0].vision_encoder.sizes],
        "steps_of_the_repeat": record.request.prompts[0].sample_steps,
        "divisor": listed.models[0].resolution_divisor,
    }


def send_files(client: AuthenticatedClient, image: bytes) -> dict[str, object]:
    """An upload as a file and as a form, and a request whose control image is a part of its body."""
    stored = upload.sync(client=client, body=File(payload=io.BytesIO(image)))
    assert isinstance(stored, Upload), stored
    again = upload.sync(client=client, body=UploadFilesBody(file=File(io.BytesIO(image), "photo.png")))
    assert isinstance(again, Upload), again
    prompts = [Prompt(prompt="a", ctrl_img=name, sample_steps=2) for name in (f"upload:{stored.id}", "part:photo")]
    request = InferenceRequest(model="qwen_image_edit", loras=[Lora(path="job/lora.safetensors")], prompts=prompts)
    form = SubmitFilesBody(request=request)
    form["photo"] = File(io.BytesIO(image), "photo.png", "image/png")
    submitted = submit.sync(client=client, body=form)
    assert isinstance(submitted, Submitted), submitted
    return {
        "sizes_of_uploads": [[each.width, each.height] for each in (stored, again)],
        "ends_of_forms": [follow(client, submitted.request_id).status.value],
    }


def main() -> None:
    base_url, key, image, results = sys.argv[1:]
    control = Path(image).read_bytes()
    with AuthenticatedClient(base_url=base_url, token=key, raise_on_unexpected_status=True) as client:
        said = make_edit(client, control) | read_errors(client) | read_records(client, control)
        said |= send_files(client, control)
    stored = [RequestResult.from_dict(result) for result in json.loads(Path(results).read_text())]
    said["read"] = Counter(result.status.value for result in stored)
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
