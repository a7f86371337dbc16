"""The service in a drill: `serve run` on its own Ray cluster, which can be killed as a whole and started again.

Every process of the cluster belongs to the process session that `serve run` started in, and is found by that, never by
name. A guard process waits until a pipe that the drill holds open is closed. However the drill ends, SIGKILL included,
the guard then kills the sessions whose leaders the drill has written to the pipe, and removes the folder.

python -m benchmarks.drill.service FOLDER      # the guard
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import yaml

from benchmarks.drill.notes import EDITOR_FILES, Notes
from serve_app.commands.ports import free_port
from serve_app.config import MINIATURE_RANDOM
from serve_app.replicas.editor import TimeLimits

ROOT = Path(__file__).parents[2]
MODEL = "qwen_image_edit"
EDITORS, INGRESSES = 3, 2
START_TIMEOUT_S = 200
# Other ingresses take over an ingress's claims after `lease_s`, a third of the default. `max_attempts` is raised
# because so many kills in a minute hit one image more than the default of three times. Time limits that are minutes by
# default are shortened so that they act within the drill.
JOBS = {"lease_s": 3, "max_attempts": 10, "silence_s": 10, "stall_s": 20}
TIME_LIMITS = TimeLimits(stopping_s=5, storage_s=10)
# Names the folder of the drill to the service's processes.
FOLDER_VARIABLE = "DRILL_FOLDER"
# `serve run` on its own Ray without the dashboard, whose ten processes take seconds to start.
SERVE_RUN = """
import ray
from ray.serve.scripts import cli
ray.init(address="local", num_cpus=8, include_dashboard=False, namespace="serve", log_to_driver=False)
cli()
"""


class DrillFailed(Exception):
    """The drill could not be run to its end, or found a problem."""


def conclude(began: float, problems: Sequence[str]) -> None:
    """Print how long a drill took that began at `began` (monotonic, s). Exits with its problems, if it has any."""
    print(f"\nThe drill took {time.monotonic() - began:.0f} s.")
    if problems:
        sys.exit("\n".join(["It FAILED:", *problems]))


class Service:
    """`with Service(...) as service: await service.start()`. `notes` has what its engines note."""

    def __init__(
        self,
        database_url: str,
        build: str = "benchmarks.drill.engine:build",
        args: Mapping[str, Any] = {},
        environment: Mapping[str, str] = {},
    ) -> None:
        """`args` replace those of the config, and `environment` variables of the drill's process."""
        self._database_url = database_url
        self._build = build
        self._args = args
        self._environment = environment

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="drill-"))
        self.notes = Notes(self.folder / "notes")
        self.url = f"http://127.0.0.1:{free_port()}"
        (self.folder / "serve_config.yaml").write_text(yaml.safe_dump(self._config()))
        command = [sys.executable, "-m", "benchmarks.drill.service", str(self.folder)]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._guard.stdin
        self._guard.stdin.close()
        self._guard.wait()

    async def start(self) -> None:
        """Start the service; returns when it is ready. Raises DrillFailed if it does not become ready."""
        self._launch()
        await self._until_ready()

    def _launch(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A short path, because sockets lie below it; a folder of its own, so that no other Ray is found.
            "RAY_TMPDIR": str(self.folder),
            FOLDER_VARIABLE: str(self.folder),
            **self._environment,
        }
        command = [sys.executable, "-c", SERVE_RUN, "run", str(self.folder / "serve_config.yaml")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True
            )
        assert self._guard.stdin
        self._guard.stdin.write(f"{self._process.pid}\n".encode())
        self._guard.stdin.flush()

    def owns(self, pid: int) -> bool:
        """Whether this process id is a living process of the service."""
        return _is_alive_in(pid, self._process.pid)

    def editors(self) -> frozenset[int]:
        """Process ids of the living editors."""
        return frozenset(pid for pid in self._registered() if self.owns(pid))

    def started(self) -> int:
        """Number of editors started so far, including those that have ended."""
        return len(self._registered())

    def _registered(self) -> list[int]:
        return [int(file.name) for file in (self.folder / EDITOR_FILES).iterdir()]

    def kill(self, pid: int) -> None:
        """Send SIGKILL to one process of the service. Raises DrillFailed for any other process."""
        if not self.owns(pid):
            raise DrillFailed(f"{pid} is no process of the service")
        os.kill(pid, signal.SIGKILL)

    def kill_cluster(self) -> int:
        """Send SIGKILL to every process of the service's Ray, including the head. Returns their number."""
        killed = kill_session(self._process.pid)
        self._process.wait()
        return killed

    def _config(self) -> dict[str, Any]:
        config = serve_config(
            {"host": "127.0.0.1", "port": int(self.url.rpartition(":")[2])},
            self._build,
            self.folder,
            {"database_url": self._database_url, **JOBS},
            {"num_replicas": INGRESSES},
            {"num_replicas": EDITORS},
        )
        config["applications"][0]["args"] |= self._args
        return config

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        last_answer = "none"
        async with httpx.AsyncClient(base_url=self.url, timeout=5) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    answer = await client.get("/ready")
                    if answer.status_code == 200:
                        return
                    last_answer = f"{answer.status_code} {answer.text[:200]}"
                except httpx.TransportError as error:
                    last_answer = repr(error)
                await asyncio.sleep(0.2)
        log = (self.folder / "log").read_text(errors="replace")
        raise DrillFailed(
            f"the service did not start; last answer of /ready: {last_answer}; the end of its log:\n{log[-3000:]}"
        )


def serve_config(
    http_options: dict[str, Any],
    build: str,
    folder: Path,
    jobs: dict[str, Any],
    ingresses: dict[str, Any],
    editors: dict[str, Any],
) -> dict[str, Any]:
    """A serve config whose replicas ask for so few CPUs that Ray places all of them on two cores."""
    args = {
        # Small, so that sixty edits take a minute even if some of them are lost.
        "models": [{"id": MODEL, "checkpoint": MINIATURE_RANDOM, "device": "cpu", "threads": 1}],
        "lora_root": str(ROOT / "tests/loras"),
        "require_lora": False,
        "jobs": jobs,
        "artifacts_url": str(folder / "artifacts"),
    }
    deployments = [
        {"name": "Ingress", "ray_actor_options": {"num_cpus": 0.1}, **ingresses},
        {"name": f"Editor-{MODEL}", "ray_actor_options": {"num_cpus": 0.3}, **editors},
    ]
    application = {
        "name": "edits",
        "route_prefix": "/",
        "import_path": build,
        "args": args,
        "deployments": deployments,
    }
    return {"http_options": http_options, "applications": [application]}


def _is_alive_in(pid: int, leader: int) -> bool:
    """Whether this is a living process of the session that the process `leader` started."""
    try:
        return os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def kill_session(leader: int) -> int:
    """Send SIGKILL to a session's processes until none is left. Returns their number."""
    killed: set[int] = set()
    while found := {pid for pid in psutil.pids() if _is_alive_in(pid, leader)}:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
        time.sleep(0.02)
    return len(killed)


def main() -> None:
    for leader in [int(line) for line in sys.stdin]:
        kill_session(leader)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
