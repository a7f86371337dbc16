"""The workload of each served model: what there is to do, and which editors are running for it."""

from collections.abc import Callable, Collection, Mapping

from serve_app.config import AppConfig
from serve_app.jobs.store import JobStore
from serve_app.policy.scaling import Backlog
from serve_app.workers.dispatcher import EditorCount


class Workload:
    """Every result has an entry for each configured model."""

    def __init__(
        self,
        config: AppConfig,
        store: JobStore,
        editor_count: EditorCount,
        ready_without_editor: Callable[[], Collection[str]],
        editors_starting: Callable[[], Mapping[str, int]],
    ) -> None:
        """`ready_without_editor` names the models that need no running editor to be ready.

        They are scaled to zero, or their first editor since then is starting. `editors_starting` counts the editors of
        each model that do not take work yet. Both answers are as old as the last call of `editor_count`.
        """
        self._models = [model.id for model in config.models]
        self._store = store
        self._editor_count = editor_count
        self._ready_without_editor = ready_without_editor
        self.editors_starting = editors_starting

    async def editor_counts(self) -> dict[str, int]:
        """How many editors of each model are running."""
        running = await self._editor_count()
        return {model: running.get(model, 0) for model in self._models}

    async def models_without_editor(self) -> list[str]:
        """The models that have no running editor and need one to be ready."""
        running = await self.editor_counts()
        ready = self._ready_without_editor()
        return [model for model, editors in running.items() if not editors and model not in ready]

    async def backlogs(self) -> dict[str, Backlog]:
        """The backlog of each model, from all ingresses. Raises StoreUnavailable."""
        known = await self._store.queue.backlogs()
        return {model: known.get(model, Backlog()) for model in self._models}
