"""A job store with editors and dispatchers, and editors whose events a test scripts."""

import asyncio
from contextlib import asynccontextmanager, suppress

from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditEvent
from serve_app.workers.dispatcher import Dispatcher
from tests.unit.conftest import InstantEditors
from tests.unit.test_jobs import MODEL, is_stored, new

# The events of one edit, with pauses (s), and optionally the error that ends it.
Script = list[EditEvent | float | Exception]


class Bench:
    """A job store and editors. A test starts the dispatchers that it needs."""

    def __init__(self, config) -> None:
        self.jobs = config.jobs
        self.artifacts = Artifacts(config.artifacts_url)
        self.store = JobStore(self.jobs)
        self.editors = InstantEditors(self.artifacts)
        self.running = 4

    async def editor_count(self) -> dict[str, int]:
        return {MODEL: self.running}

    @asynccontextmanager
    async def dispatching(self):
        dispatcher = Dispatcher(self.store, self.editors, self.artifacts, self.jobs, self.editor_count)
        running = asyncio.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def stopped(self) -> None:
        """Wait until an edit has been asked to stop."""
        async with asyncio.timeout(30):
            await self.editors.stopped.wait()

    async def ended(self, request_id: str):
        async with asyncio.timeout(30):
            while not (record := await self.store.requests.get(request_id)).status.ended:
                await asyncio.sleep(0.02)
        return record


class ScriptedEditors:
    """Editors that send the events of one script per edit. Edits after the last script make their image."""

    def __init__(self, editors: InstantEditors, scripts: list[Script]) -> None:
        self._editors = editors
        self.scripts = scripts

    async def edit(self, task):
        if not self.scripts:
            async for event in self._editors.edit(task):
                yield event
            return
        for each in self.scripts.pop(0):
            if isinstance(each, Exception):
                raise each
            if isinstance(each, float):
                await asyncio.sleep(each)
            else:
                yield each


async def run_scripted(bench, *scripts: Script, **jobs: float):
    """Run one request to its end, with one script per edit. Edits after the last script make its image.

    `jobs` are changed keys of the jobs config. Returns the request's record.
    """
    bench.jobs = bench.jobs.model_copy(update=jobs)
    bench.editors = ScriptedEditors(bench.editors, list(scripts))
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert not bench.editors.scripts
    return record
