"""An application that tests use one after the other, each as if it were new: a start takes up to 0.2 s of CPU."""

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from starlette.testclient import TestClient

from serve_app.config import SQLITE_PREFIX, AppConfig, IngressSettings
from serve_app.jobs import tables
from tests.unit.conftest import LORA, Application, safetensors_bytes

# How long the requests of a test may take to end after it (s).
PATIENCE_S = 1.0


class SharedApplication:
    """A running application and its client. Its paths lie in one folder, its jobs in SQLite."""

    def __init__(self, config: AppConfig) -> None:
        self.application = Application(config)
        self.client = TestClient(self.application.app)
        self.client.__enter__()
        self._headers = dict(self.client.headers)
        self._loras = Path(config.lora_root)
        self._lora = _version(self._loras / LORA)

    def close(self) -> None:
        self.client.__exit__(None, None, None)

    def clean(self) -> bool:
        """Delete what a test has left. False if some of its work goes on: then no other test can use this."""
        application = self.application
        application.running = {group: 1 for model in application.config.models for group in model.editor_groups}
        self.client.portal.call(application.editors.gate.set)
        deadline = time.monotonic() + PATIENCE_S
        while not (self._is_idle() and self._delete_jobs()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        application.editors.__init__(application.editors.artifacts)
        application.service.reconfigure(IngressSettings())
        self.client.headers = self._headers
        self.client.cookies.clear()
        shutil.rmtree(application.config.artifacts_url, ignore_errors=True)
        self._restore_loras()
        return True

    def _is_idle(self) -> bool:
        service = self.application.service
        held = service.resources.body_memory.held + service.resources.image_memory.held
        return held == 0 and not service._dispatcher._leases.work

    def _delete_jobs(self) -> bool:
        """Empty all tables. False if there is a request that has not ended."""
        path = self.application.config.jobs.database_url.removeprefix(SQLITE_PREFIX)
        with closing(sqlite3.connect(path, timeout=30)) as database, database:
            if database.execute("SELECT 1 FROM requests WHERE finished_at IS NULL").fetchone():
                return False
            for table in reversed(tables.metadata.sorted_tables):
                database.execute(f"DELETE FROM {table.name}")
        return True

    def _restore_loras(self) -> None:
        lora = self._loras / LORA
        if _version(lora) != self._lora:
            shutil.rmtree(self._loras)
            lora.parent.mkdir(parents=True)
            lora.write_bytes(safetensors_bytes())
            self._lora = _version(lora)
        for path in sorted(self._loras.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if path != lora.parent:
                    shutil.rmtree(path)
            elif path != lora:
                path.unlink()


def _version(file: Path) -> tuple[int, int, int] | None:
    """Changes with each change of the file. None if there is none."""
    if not file.is_file() or file.is_symlink():
        return None
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
