"""`edits-server run`: the front, Ray and the application, from the start to the end of the last edit."""

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
from serve_app.commands.front import Front
from serve_app.commands.haproxy import FrontSettings
from serve_app.commands.ports import free_port, listen
from serve_app.commands.signals import StopSignals
from serve_app.errors import StartFailed
from serve_app.replicas.running_editors import PlacementLog

POLL_S = 0.25
# How often the log says what is being waited for (s).
REPORT_S = 10.0
# Serve's own end, after the replicas' (s).
MARGIN_S = 15.0
# How long a stop waits for a look at the replicas that has begun (s).
LOOK_END_S = 5.0
# The last events of a finished edit reach its watchers within this time (s).
LAST_EVENTS_S = 2.0

logger = logging.getLogger(__name__)


def run_service(path: Path, address: str | None) -> None:
    """Returns after a signal, once running edits have finished.

    Raises ConfigRefused, FrontFailed, StartFailed, and KeyboardInterrupt for a second signal.
    """
    file = read_config_file(path)
    stop = StopSignals()
    stop.listen()
    with listen(file.host, file.port) as listener:
        port = free_port()
        settings = FrontSettings(file.config.front, file.config.cors_origins, file.base_path, port)
        with Front(settings, listener) as front:
            logger.info("%s:%s answers 503 until the service is ready; starting Ray", file.host, file.port)
            with cluster(address, stop):
                service = RunningService(file, front, stop)
                service.start(port)
                service.watch()
                service.drain()


class RunningService:
    """The application of a config file on the Ray that this process is connected to."""

    def __init__(self, file: ConfigFile, front: Front, stop: StopSignals) -> None:
        self._file = file
        self._front = front
        self._stop = stop
        self._placement = PlacementLog(file.application)

    def start(self, port: int) -> None:
        """Returns when the application runs, or at a signal. Raises StartFailed when it cannot be deployed."""
        if self._stop.asked:
            return
        schema = self._file.behind_front(port)
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
            self._placement.look()
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                logger.info("waiting for %s", waited_for(application))
            time.sleep(POLL_S)

    def watch(self) -> None:
        """Returns at a signal."""
        # In a thread, as Serve may take long to answer, and the front is looked after in the meantime.
        looking = threading.Thread(target=self._look_for_unplaced, daemon=True)
        looking.start()
        while not self._stop.asked:
            self._front.keep_running()
            time.sleep(POLL_S)
        # Two threads that read Serve's status make each other fail.
        looking.join(LOOK_END_S)

    def _look_for_unplaced(self) -> None:
        """Ingresses look too, but without a machine for them nobody else does."""
        while not self._stop.asked:
            self._placement.look()
            time.sleep(POLL_S)

    def drain(self) -> None:
        """Take no new requests, and return when running edits have finished and the application has ended."""
        logger.info("stopping: running edits finish first; a second signal stops at once")
        self._front.close()
        if (application := self._status()) is not None:
            serve.delete(self._file.application, _blocking=False)
            deadline = time.monotonic() + shutdown_s(self._file.config.jobs) + MARGIN_S
            while (application := self._status()) is not None and time.monotonic() < deadline:
                if not has_editors(application):
                    time.sleep(LAST_EVENTS_S)
                    # Watchers of requests that still wait resume with the next start.
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
    """Whether an editor still runs or finishes its edits."""
    return any(
        deployment.replica_states for name, deployment in application.deployments.items() if name.startswith("Editor-")
    )


def waited_for(application: ApplicationStatusOverview | None) -> str:
    """The deployments that have no running replica yet, with what Serve says about them."""
    deployments = application.deployments if application else {}
    missing = [
        f"{name} ({deployment.message or deployment.status.value.lower()})"
        for name, deployment in deployments.items()
        if not deployment.replica_states.get(ReplicaState.RUNNING.value, 0)
    ]
    return ", ".join(missing) or "the application to be built"


def reason_of(application: ApplicationStatusOverview) -> str:
    """One sentence out of what Serve says: the text of the error that its traceback ends with."""
    messages = [application.message, *(each.message for each in application.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [
        match.group(1) for line in lines if (match := re.match(r"(?:\w+\.)*\w+(?:Error|Exception|Refused): (.+)", line))
    ]
    return errors[-1] if errors else " ".join(lines)[:500]
