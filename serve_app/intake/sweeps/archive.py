"""The archive of a sweep: a ZIP with its finished images, its table and its description, made while it is sent."""

import asyncio
import json
import re
import zipfile
from collections.abc import AsyncIterator
from typing import Any

from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.intake.resources import Resources
from serve_app.intake.sweeps.axes import step_of_path
from serve_app.intake.sweeps.table import SweepTables
from serve_app.intake.tenants import Caller
from serve_app.jobs.sweeps.records import Axes, CellImage, SweepRecord
from serve_app.storage.artifacts import Artifacts

# Characters that every file system takes.
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


class _Outbox:
    """A file that a ZIP is written to, and from which its bytes are taken. It cannot seek."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing has to be closed."""

    def take(self) -> bytes:
        """The bytes that were written since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


class SweepArchives:
    """Makes archives. One image at a time is in memory."""

    def __init__(self, resources: Resources, tables: SweepTables) -> None:
        self._store = resources.store
        self._artifacts = resources.artifacts
        self._tables = tables

    async def parts(self, record: SweepRecord, caller: Caller, description: dict[str, Any]) -> AsyncIterator[bytes]:
        """The bytes of the archive. Images that were deleted meanwhile are left out.

        Raises StoreUnavailable and StorageFailed.
        """
        outbox = _Outbox()
        # Images are compressed already.
        with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("sweep.json", json.dumps(description, indent=2))
            for image in await self._store.sweeps.images(record):
                name = f"cells/{name_of(image, record.definition.axes)}"
                await asyncio.to_thread(_add, archive, name, self._artifacts, image.done.key)
                yield outbox.take()
            # Comparing takes its time: rows are sent as they are made.
            with archive.open("cells.csv", "w") as table:
                async for lines in self._tables.rows(record, caller):
                    table.write(lines.encode())
                    yield outbox.take()
        yield outbox.take()


def _add(archive: zipfile.ZipFile, name: str, artifacts: Artifacts, key: str) -> None:
    try:
        archive.writestr(name, artifacts.get(key))
    except FileNotFoundError:
        return


def name_of(image: CellImage, axes: Axes) -> str:
    """The name of an image's file: the cell's number and what distinguishes it, for people."""
    place = image.place
    path = axes.checkpoints[place.checkpoint]
    step = step_of_path(path)
    parts = [f"{image.number:04}"]
    if path is None:
        parts.append("no-lora")
    else:
        parts.append(f"step-{step}" if step is not None else path.rpartition("/")[2].removesuffix(".safetensors"))
        parts.append(f"x{axes.multipliers[place.multiplier or 0]:g}")
    parts += [f"prompt-{place.prompt + 1}", f"seed-{axes.seeds[place.seed]}"]
    if len(axes.control_images) > 1:
        parts.append(f"image-{place.control_image + 1}")
    return UNSAFE.sub("-", "_".join(parts))[:150] + OUTPUT_FORMATS[image.done.format].suffix
