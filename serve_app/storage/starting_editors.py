"""What starting editors report, in artifact storage: one file per editor group, which its editors write.

If several editors of a group start, the file has the report of one of them.
"""

from pydantic import BaseModel

from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.telemetry.start_progress import StartProgress, StartState


class Report(BaseModel):
    """A report as it is stored."""

    state: StartState
    bytes_read: int
    bytes: int
    beat: int


class StartingEditors:
    """The reports of starting editors. All calls block, and raise StorageFailed."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    def put(self, group: str, progress: StartProgress, beat: int) -> None:
        """Report a start. `beat` changes with each report: a report that stays the same is of an editor that died."""
        self._artifacts.put_json(artifact_keys.starting_editor(group), progress._asdict() | {"beat": beat})

    def get(self, group: str) -> tuple[StartProgress, int] | None:
        """The newest report of a group and its beat, None if there is none.

        Raises ValueError for one that this version does not know.
        """
        stored = self._artifacts.get_json(artifact_keys.starting_editor(group))
        if stored is None:
            return None
        report = Report.model_validate(stored)
        return StartProgress(report.state, report.bytes_read, report.bytes), report.beat

    def delete(self, group: str) -> None:
        """The editor takes work now, or has failed."""
        self._artifacts.delete([artifact_keys.starting_editor(group)])
