"""A store of jobs with editors and dispatchers, and editors that say what a test has them say."""

import asyncio
from contextlib import asynccontextmanager, suppress

from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditEvent
from serve_app.workers.dispatcher import Dispatcher
from tests.unit.conftest import InstantEditors
from tests.unit.test_jobs import MODEL, is_stored, new

# What an editor says of an edit, with pauses (s), and how that ends.
Says = list[EditEvent | float | Exception]


class Bench:
    """A store, editors, and as many dispatchers as a test starts."""

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
        """Return once an edit has been told to stop."""
        async with asyncio.timeout(30):
            await self.editors.stopped.wait()

    async def ended(self, request_id: str):
        async with asyncio.timeout(30):
            while not (record := await self.store.requests.get(request_id)).status.ended:
                await asyncio.sleep(0.02)
        return record


class Saying:
    """Editors that say what a test has them say of each edit, and then nothing or what makes the image."""

    def __init__(self, editors: InstantEditors, says: list[Says]) -> None:
        self._editors = editors
        self.says = says

    async def edit(self, task):
        if not self.says:
            async for event in self._editors.edit(task):
                yield event
            return
        for each in self.says.pop(0):
            if isinstance(each, Exception):
                raise each
            if isinstance(each, float):
                await asyncio.sleep(each)
            else:
                yield each


async def saying(bench, *says: Says, **jobs: float):
    """A request, when it has ended, whose editors said this of it, an edit each; after that they make its image."""
    bench.jobs = bench.jobs.model_copy(update=jobs)
    bench.editors = Saying(bench.editors, list(says))
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert not bench.editors.says
    return record
