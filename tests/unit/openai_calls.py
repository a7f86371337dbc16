"""What tests of OpenAI's images API share: an application with presets, and calls as clients send them."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

from serve_app.config import MINIATURE_RANDOM, AppConfig, IngressSettings
from serve_app.errors import OutOfMemory
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreview, StepPreviewStorage
from serve_app.tasks import EditEvent, EditTask, StepDone
from tests.unit.conftest import IMAGE, Application

LORA = {"path": "job/lora.safetensors"}
PRESETS: dict[str, Any] = {
    "house-style": {"model": "qwen_image_edit", "loras": [LORA], "sample_steps": 4, "trigger_word": "sks"},
    "two-images": {"model": "qwen_image_edit_plus", "loras": [LORA], "sample_steps": 4},
    "posters": {"model": "qwen_image", "loras": [LORA], "size": "512x768", "output_format": "jpeg"},
}
MODELS = ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image")
IMAGE_TEXT = base64.b64encode(IMAGE).decode()


def application_with_presets(config: AppConfig) -> Application:
    models = [{"id": model, "checkpoint": MINIATURE_RANDOM} for model in MODELS]
    application = Application(AppConfig.model_validate(config.model_dump() | {"models": models}))
    application.service.reconfigure(IngressSettings.model_validate({"presets": PRESETS}))
    return application


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def form(*parts: tuple[str, str | bytes], boundary: str = "b0und4ry") -> dict[str, Any]:
    """The body and headers of a form. Bytes become a file."""
    body = b""
    for name, content in parts:
        file = '; filename="upload"\r\nContent-Type: application/octet-stream' if isinstance(content, bytes) else ""
        data = content if isinstance(content, bytes) else content.encode()
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    return {"content": body + f"--{boundary}--\r\n".encode(), "headers": headers}


class PreviewingEditors:
    """Editors that store a preview after each step of a watched edit: its number, as text. The prompt "fail" fails."""

    def __init__(self, application: Application) -> None:
        self._make, self._tasks = application.editors.edit, application.editors.tasks
        self._storage = StepPreviewStorage(Artifacts(application.config.artifacts_url))

    async def edit(self, task: EditTask) -> AsyncIterator[EditEvent]:
        request_id, steps = task.request_id, task.plan.steps
        for step in range(steps):
            yield StepDone(step, steps)
            # Progress is recorded four times a second. A stream marks its request soon after the edit has begun.
            if step == 0 or self._storage.marker(request_id) is not None:
                self._storage.put(request_id, task.index, StepPreview(step, str(step).encode()))
                await asyncio.sleep(0.3)
        if task.plan.prompt == "fail":
            self._tasks.append(task)
            raise OutOfMemory("an image of 64x64 does not fit")
        async for event in self._make(task):
            yield event
