"""What the parts of the service in one ingress share: stores, downloads, decoders, and memory within limits."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from serve_app.concurrency.budget import Budget
from serve_app.config import AppConfig
from serve_app.images.decoder_pool import PROCESSES, Decoders
from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.fetch import Fetcher


class Resources:
    """Usable while `opened` is entered.

    `body_memory` is for request bodies, `image_memory` for control images while their requests are checked (bytes).
    """

    def __init__(self, config: AppConfig) -> None:
        """Raises StorageRefused."""
        # A tenant may hold one part in `parts` of memory and connections. Without API keys all callers are one tenant.
        parts = 2 if config.auth.keys_file else 1
        # A body that finds no memory is refused at once: see `BodyLimit`.
        self.body_memory = _budget(config, parts, 0.0, "this request's body")
        self.image_memory = _budget(config, parts, config.fetch.patience_s, "this request's control images")
        self.artifacts = Artifacts(config.artifacts_url)
        self.fetcher = Fetcher(config.fetch, config.fetch.connections // parts)
        self.decoders = Decoders(config.fetch, PROCESSES - 1 if config.auth.keys_file else PROCESSES)
        self.store = JobStore(config.jobs)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the database, and close everything at the exit, also if the database cannot be opened.

        Raises StoreUnavailable.
        """
        async with AsyncExitStack() as exits:
            exits.push_async_callback(self.fetcher.close)
            exits.push_async_callback(self.decoders.close)
            exits.push_async_callback(self.store.close)
            await self.store.open()
            yield


def _budget(config: AppConfig, parts: int, patience_s: float, what: str) -> Budget:
    """Memory of `fetch.budget_bytes`, of which one tenant may hold one part in `parts`."""
    total = config.fetch.budget_bytes
    return Budget(total, total // parts, patience_s, what)
