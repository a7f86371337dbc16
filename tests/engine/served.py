"""The service through HTTP, with engines in this process in place of editors on Ray."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config import SQLITE_PREFIX, AppConfig, IngressSettings
from serve_app.engine.torch_engine import TorchEngine
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.intake.service import Service
from serve_app.replicas.edit_progress import ALIVE_S
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone, EditEvent, EditTask, Heartbeat, Stage


class EngineEditors:
    """Editors that are engines in this process."""

    def __init__(self, config: AppConfig) -> None:
        self._artifacts = Artifacts(config.artifacts_url)
        self.engines = {model.id: TorchEngine.load(model) for model in config.models}
        # An engine makes one edit at a time, as on the device's thread of an editor.
        self._one_edit = threading.Lock()

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        work = asyncio.create_task(asyncio.to_thread(self._edit, task))
        while not work.done():
            yield Heartbeat(Stage.RUNNING)
            await asyncio.wait([work], timeout=ALIVE_S)
        yield work.result()

    def _edit(self, task: EditTask) -> EditDone:
        plan = task.plan
        files = [self._artifacts.get(artifact_keys.control_image(sha256)) for sha256 in plan.control_images]
        with self._one_edit:
            edited = self.engines[plan.model].edit(plan, files)
        data = encode(edited.image, OUTPUT_FORMATS[plan.output_format], {"effective": edited.effective})
        digest = hashlib.sha256(data).hexdigest()
        key = artifact_keys.image(digest, f".{plan.output_format}")
        self._artifacts.put(key, data)
        size = edited.image.size
        url = self._artifacts.url(key)
        return EditDone(
            key, url, plan.output_format, *size, plan.seed, len(data), digest, edited.timings, edited.effective
        )

    async def running(self) -> dict[str, int]:
        """One editor of each model."""
        return dict.fromkeys(self.engines, 1)


@dataclass(frozen=True)
class Served:
    """The service, and the engine of each of its models."""

    service: Service
    client: TestClient
    engines: dict[str, TorchEngine]

    def reconfigure(self, user_config: dict) -> None:
        self.service.reconfigure(IngressSettings.model_validate(user_config))

    def edit(self, body: dict) -> tuple[bytes, dict]:
        """The image's file, and the effective record of it."""
        result = self.client.post("/v1/inference?wait=120", json=body).json()
        assert result["status"] == "succeeded", result
        [image], [record] = result["outputs"]["images"], result["metadata"]["effective"]
        return self.client.get(image["url"]).content, record


@contextmanager
def served(folder: Path, **args: object) -> Iterator[Served]:
    """The service for as long as the block lasts; `args` are those of serve_config.yaml."""
    paths = {
        "artifacts_url": str(folder / "artifacts"),
        "jobs": {"database_url": f"{SQLITE_PREFIX}{folder}/jobs.sqlite3"},
    }
    config = AppConfig.model_validate(paths | args)
    editors = EngineEditors(config)
    service = Service(config, editors, editors.running)
    with TestClient(create_app(service)) as client:
        yield Served(service, client, editors.engines)
