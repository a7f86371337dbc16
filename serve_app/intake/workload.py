"""The workload of each served model: what there is to do, and which editors are running for it."""

from collections.abc import Callable, Collection

from serve_app.config import AppConfig
from serve_app.jobs.store import JobStore
from serve_app.policy.scaling import Backlog
from serve_app.workers.dispatcher import EditorCount


class Workload:
    """Every answer has an entry for each configured model."""

    def __init__(
        self, config: AppConfig, store: JobStore, editor_count: EditorCount, asleep: Callable[[], Collection[str]]
    ) -> None:
        """`asleep` names the models that are scaled to zero, as of the last call of `editor_count`."""
        self._models = [model.id for model in config.models]
        self._store = store
        self._editor_count = editor_count
        self._asleep = asleep

    async def editor_counts(self) -> dict[str, int]:
        """How many editors of each model are running."""
        running = await self._editor_count()
        return {model: running.get(model, 0) for model in self._models}

    async def models_without_editor(self) -> list[str]:
        """The models that have no running editor and are not scaled to zero."""
        running = await self.editor_counts()
        asleep = self._asleep()
        return [model for model, editors in running.items() if not editors and model not in asleep]

    async def backlogs(self) -> dict[str, Backlog]:
        """What there is to do for each model, whichever ingress took it in. Raises StoreUnavailable."""
        known = await self._store.queue.backlogs()
        return {model: known.get(model, Backlog()) for model in self._models}
