"""The workload of each editor group: what there is to do, and how many editors are running for it."""

from collections.abc import Callable, Collection, Mapping

from serve_app.config import AppConfig
from serve_app.jobs.store import JobStore
from serve_app.policy.scaling import Backlog
from serve_app.workers.dispatcher import EditorCount


class Workload:
    """Every result has an entry for each configured editor group: each model, and each tier with editors of its own."""

    def __init__(
        self,
        config: AppConfig,
        store: JobStore,
        editor_count: EditorCount,
        ready_without_editor: Callable[[], Collection[str]],
        editors_starting: Callable[[], Mapping[str, int]],
    ) -> None:
        """`ready_without_editor` names the groups that need no running editor to be ready.

        They are scaled to zero, or their first editor since then is starting. `editors_starting` counts the editors of
        each group that do not take work yet. Both answers are as old as the last call of `editor_count`.
        """
        self._groups = {group: model.id for model in config.models for group in model.editor_groups}
        self._store = store
        self._editor_count = editor_count
        self._ready_without_editor = ready_without_editor
        self.editors_starting = editors_starting

    async def editor_counts(self) -> dict[str, int]:
        """How many editors of each group are running."""
        running = await self._editor_count()
        return {group: running.get(group, 0) for group in self._groups}

    def model_and_tier(self, group: str) -> tuple[str, str | None]:
        """The model of an editor group, and the tier if the group makes the images of one tier only."""
        model = self._groups[group]
        return model, group.removeprefix(f"{model}-") if group != model else None

    async def groups_without_editor(self) -> list[str]:
        """The groups that have no running editor and need one to be ready."""
        running = await self.editor_counts()
        ready = self._ready_without_editor()
        return [group for group, editors in running.items() if not editors and group not in ready]

    async def backlogs(self) -> dict[str, Backlog]:
        """The backlog of each group, from all ingresses. Raises StoreUnavailable."""
        known = await self._store.queue.backlogs()
        return {group: known.get(group, Backlog()) for group in self._groups}
