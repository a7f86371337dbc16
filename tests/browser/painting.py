"""Editors of the browser tests: they make real images, with effective records and step previews, and wait when told."""

import asyncio
import hashlib
import io
from collections.abc import AsyncGenerator

import PIL.Image
import PIL.ImageOps

from serve_app.config import MINIATURE_RANDOM, ModelConfig
from serve_app.images.decode import decode
from serve_app.images.encode import encode, encode_preview
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.intake.admission.plan import PlannedEdit, add_recipes
from serve_app.models.architecture import architecture_of
from serve_app.models.effective import effective_record
from serve_app.models.registry import MODELS
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreview, StepPreviewStorage
from serve_app.tasks import EditDone, EditEvent, EditPlan, EditTask, Heartbeat, Stage, StepDone
from tests.unit.conftest import InstantEditors

ARCHITECTURE = architecture_of(ModelConfig(checkpoint=MINIATURE_RANDOM))
RUNTIME = {"device": "cpu", "dtype": "float32"}


class PaintingEditors(InstantEditors):
    """The image is the first control image in inverse colors, or one color that the seed decides.

    While `gate` is closed, an edit waits after its step number `hold_after`; a step preview of each step is stored.
    """

    def __init__(self, artifacts: Artifacts) -> None:
        super().__init__(artifacts)
        self.hold_after = 0

    def forget(self) -> None:
        """Forget what a test has told and seen."""
        self.hold_after = 0
        self.tasks, self.errors = [], []
        self.stopped.clear()

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        self.tasks.append(task)
        plan = task.plan
        yield Heartbeat(Stage.RUNNING)
        for step in range(plan.steps + 1):
            yield StepDone(step, plan.steps)
            if step:
                await asyncio.to_thread(self._show, task, step)
            if step == self.hold_after:
                await self._wait()
        if self.errors:
            raise self.errors.pop(0)
        yield await asyncio.to_thread(self._paint, plan)

    async def _wait(self) -> None:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise

    def _show(self, task: EditTask, step: int) -> None:
        preview = PIL.Image.new("RGB", (64, 64), (255 * step // task.plan.steps, 80, 80))
        stored = StepPreview(step, encode_preview(preview))
        StepPreviewStorage(self.artifacts).put(task.request_id, task.index, stored)

    def _paint(self, plan: EditPlan) -> EditDone:
        edit = self._planned(plan)
        effective = effective_record(plan, MODELS[plan.model], edit.recipe, ARCHITECTURE, edit.control_images)
        output_format = OUTPUT_FORMATS[plan.output_format]
        data = encode(self._image(plan), output_format, {"effective": effective, "runtime": RUNTIME})
        digest = hashlib.sha256(data).hexdigest()
        key = artifact_keys.image(digest, output_format.suffix)
        self.artifacts.put(key, data)
        return EditDone(
            key=key,
            url=self.artifacts.url(key),
            format=plan.output_format,
            width=plan.width,
            height=plan.height,
            seed=plan.seed,
            size_bytes=len(data),
            sha256=digest,
            timings={"generate": 1.0, "load_control_images": 0.1, "save": 0.1},
            effective=effective,
            runtime=RUNTIME,
        )

    def _planned(self, plan: EditPlan) -> PlannedEdit:
        facts = {sha256: decode(self._control(sha256), plan.exif).facts for sha256 in plan.control_images}
        [edit] = add_recipes([plan], MODELS[plan.model], facts)
        return edit

    def _image(self, plan: EditPlan) -> PIL.Image.Image:
        if not plan.control_images:
            return PIL.Image.new("RGB", (plan.width, plan.height), (plan.seed % 256, 90, 160))
        control = PIL.Image.open(io.BytesIO(self._control(plan.control_images[0]))).convert("RGB")
        return PIL.ImageOps.invert(control.resize((plan.width, plan.height)))

    def _control(self, sha256: str) -> bytes:
        return self.artifacts.get(artifact_keys.control_image(sha256))
