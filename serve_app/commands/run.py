"""`edits-server run`: starts the front, Ray and the application, and stops them after the last edit."""

import logging
import re
import threading
import time
from pathlib import Path

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ReplicaState, ServeDeploySchema

from serve_app.app import shutdown_s
from serve_app.commands.cluster import cluster
from serve_app.commands.config_file import ConfigFile, read_config_file
from serve_app.commands.followed_file import FollowedFile
from serve_app.commands.front import Front
from serve_app.commands.haproxy import FrontSettings
from serve_app.commands.ports import free_port, listen
from serve_app.commands.signals import StopSignals
from serve_app.errors import StartFailed
from serve_app.replicas.running_editors import PlacementLog

POLL_S = 0.25
# How often the log names the deployments that are not running yet (s).
REPORT_S = 10.0
# Time for Serve's own shutdown, after the replicas' (s).
SERVE_SHUTDOWN_S = 15.0
# How long a stop waits for the thread that reads the replicas' status (s).
THREAD_END_S = 5.0
# The last events of a finished edit reach the clients that follow it within this time (s).
LAST_EVENTS_S = 2.0

# The last line of a traceback, and the text of its error.
ERROR_LINE = re.compile(r"(?:\w+\.)*\w+(?:Error|Exception|Refused): (.+)")

logger = logging.getLogger(__name__)


def run_service(path: Path, address: str | None) -> None:
    """Run the service of a config file. Returns after a signal, when the running edits have finished.

    Raises ConfigRefused, FrontFailed, StartFailed, and KeyboardInterrupt for a second signal.
    """
    file = read_config_file(path)
    stop = StopSignals()
    stop.listen()
    with listen(file.host, file.port) as listener:
        port = free_port()
        settings = FrontSettings(file.config.front, file.config.cors_origins, file.base_path, port)
        with Front(settings, listener) as front:
            logger.info("starting Ray; until the application runs, %s:%s answers 503", file.host, file.port)
            with cluster(address, stop):
                service = RunningService(file, front, stop, port)
                service.start()
                service.watch()
                service.drain()


class RunningService:
    """The application of a config file on the Ray that this process is connected to."""

    def __init__(self, file: ConfigFile, front: Front, stop: StopSignals, port: int) -> None:
        """`port` is where Serve's proxy listens, behind the front."""
        self._file = file
        self._front = front
        self._stop = stop
        self._port = port
        self._placement = PlacementLog(file.application)

    def start(self) -> None:
        """Deploy the application. Returns when it runs, or at a signal. Raises StartFailed if it cannot be deployed."""
        if self._stop.asked:
            return
        schema = self._file.behind_front(self._port)
        serve.start(
            proxy_location=schema.proxy_location,
            http_options=schema.http_options.model_dump(),
            grpc_options=schema.grpc_options.model_dump(),
            logging_config=schema.logging_config,
        )
        _get_global_client().deploy_apps(schema)
        self._wait_until_running(schema)

    def _wait_until_running(self, schema: ServeDeploySchema) -> None:
        reported = time.monotonic()
        while not self._stop.asked:
            self._front.keep_running()
            application = self._status()
            if application is not None and application.status == ApplicationStatus.RUNNING:
                logger.info("the service is ready at %s", self._url())
                return
            if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
                raise StartFailed(f"the service could not be deployed: {reason_of(application)}")
            self._placement.check()
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                logger.info("waiting for %s", not_running(application))
            time.sleep(POLL_S)

    def watch(self) -> None:
        """Keep the front running, apply changes of the file's `user_config`s, and log replicas that no machine has room
        for. Returns at a signal."""
        # In a thread, because Serve may take long to answer, and the front has to be restarted meanwhile if it ends.
        with_serve = threading.Thread(target=self._watch_with_serve, daemon=True)
        with_serve.start()
        while not self._stop.asked:
            self._front.keep_running()
            time.sleep(POLL_S)
        # Serve's status must not be read by two threads at the same time: both would fail.
        with_serve.join(THREAD_END_S)

    def _watch_with_serve(self) -> None:
        followed = FollowedFile(self._file)
        while not self._stop.asked:
            # Ingresses log replicas without a machine too, but only if a machine has room for ingresses.
            self._placement.check()
            if (changed := followed.changed()) is not None:
                _get_global_client().deploy_apps(changed.behind_front(self._port))
                logger.info("the user_config of %s has changed, and is applied without a restart", changed.path)
            time.sleep(POLL_S)

    def drain(self) -> None:
        """Refuse new requests, and return when the running edits have finished and the application is gone."""
        logger.info("stopping after the running edits; a second signal stops at once")
        self._front.close()
        if (application := self._status()) is not None:
            serve.delete(self._file.application, _blocking=False)
            deadline = time.monotonic() + shutdown_s(self._file.config.jobs) + SERVE_SHUTDOWN_S
            while (application := self._status()) is not None and time.monotonic() < deadline:
                if not has_editors(application):
                    time.sleep(LAST_EVENTS_S)
                    # Clients that follow waiting requests reconnect after the next start.
                    self._front.cut()
                time.sleep(POLL_S)
        serve.shutdown()
        logger.info("stopped")

    def _status(self) -> ApplicationStatusOverview | None:
        return serve.status().applications.get(self._file.application)

    def _url(self) -> str:
        host = f"[{self._file.host}]" if ":" in self._file.host else self._file.host
        return f"http://{host}:{self._file.port}{self._file.base_path}"


def has_editors(application: ApplicationStatusOverview) -> bool:
    """Whether an editor is still running or finishing its edits."""
    return any(
        deployment.replica_states for name, deployment in application.deployments.items() if name.startswith("Editor-")
    )


def not_running(application: ApplicationStatusOverview | None) -> str:
    """The deployments that have no running replica, each with Serve's message about it."""
    deployments = application.deployments if application else {}
    missing = [
        f"{name} ({deployment.message or deployment.status.value.lower()})"
        for name, deployment in deployments.items()
        if not deployment.replica_states.get(ReplicaState.RUNNING.value, 0)
    ]
    return ", ".join(missing) or "the application to be built"


def reason_of(application: ApplicationStatusOverview) -> str:
    """One sentence from Serve's messages: the text of a traceback's last error, or the beginning of the messages."""
    messages = [application.message, *(each.message for each in application.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        error = ERROR_LINE.match(line)
        if error:
            return error.group(1)
    return " ".join(lines)[:500]
