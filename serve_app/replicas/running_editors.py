"""Asks Serve's controller how many editors run, and which replicas no machine has room for."""

import asyncio
import logging
import time
from collections.abc import Mapping

import ray
from ray import serve
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview

from serve_app.policy.placement import Machine, explain_unplaced, replica_groups

# How long an answer of the controller is valid (s). A caller waits twice as long for the next answer and then gets the
# previous one.
EDITORS_TTL_S = 1.0
# How long a caller waits for the first answer (s).
FIRST_ANSWER_S = 10.0
# How often replicas without a machine are searched for, and how often the log repeats the same ones (s).
CHECK_PERIOD_S, REPEAT_S = 5.0, 60.0

logger = logging.getLogger(__name__)


class RunningEditors:
    """The number of running editors per editor group, from Serve's controller, which is asked at most once per second.

    While the controller does not answer, the last known numbers are returned: replacing the head node takes a minute,
    and editors continue to work meanwhile.
    """

    def __init__(self, application: str, groups: list[str], ttl_s: float = EDITORS_TTL_S) -> None:
        self._application = application
        self._groups = groups
        self._ttl_s = ttl_s
        self._known: Mapping[str, DeploymentStatusOverview] = {}
        self._asked = float("-inf")
        self._asking: asyncio.Task[Mapping[str, DeploymentStatusOverview]] | None = None
        self._placement = PlacementLog(application)

    async def __call__(self) -> Mapping[str, int]:
        """The number of running editors by group."""
        # One question at a time: two threads that read a status which contains an autoscaling policy make each other
        # fail.
        if self._asking is None and time.monotonic() - self._asked > self._ttl_s:
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
        if (asking := self._asking) is not None:
            await asyncio.wait([asking], timeout=2 * self._ttl_s if self._known else FIRST_ANSWER_S)
            if asking.done() and self._asking is asking:
                self._asking, self._asked = None, time.monotonic()
                self._remember(asking)
        return {group: known.replica_states.get("RUNNING", 0) for group, known in self._known.items()}

    def _remember(self, answer: asyncio.Task[Mapping[str, DeploymentStatusOverview]]) -> None:
        """Keep the answer, unless the controller failed or has just started and knows no deployments yet."""
        if answer.exception() is not None:
            logger.warning("Serve's controller did not report the running editors", exc_info=answer.exception())
        elif answer.result():
            self._known = answer.result()

    def ready_without_editor(self) -> frozenset[str]:
        """The groups that count as ready although no editor runs: scaled to zero, or starting an editor for new work.

        In the first deployment, and after the death of an editor, Serve reports another status.
        """
        expected = (DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING)
        return frozenset(
            group
            for group, known in self._known.items()
            if not known.replica_states.get("RUNNING", 0) and known.status in expected
        )

    def starting(self) -> dict[str, int]:
        """How many editors of each group were ordered and do not take work yet, as the last answer says."""
        return {group: known.replica_states.get("STARTING", 0) for group, known in self._known.items()}

    def _ask(self) -> Mapping[str, DeploymentStatusOverview]:
        application = serve.status().applications.get(self._application)
        deployments = application.deployments if application else {}
        if any("STARTING" in deployment.replica_states for deployment in deployments.values()):
            self._placement.check()
        return {group: deployments[editor_name(group)] for group in self._groups if editor_name(group) in deployments}


class PlacementLog:
    """Logs which replicas have no machine, and why; the same ones again every minute.

    Serve itself waits forever without a word. Both `edits-server run` and each ingress check, so the same sentence may
    appear in several logs.
    """

    def __init__(self, application: str) -> None:
        self._application = application
        self._last_check = float("-inf")
        self._logged: dict[str, float] = {}

    def check(self) -> None:
        """Log replicas without a machine, unless the last check was just now. Blocks: asks Serve's controller."""
        now = time.monotonic()
        if now - self._last_check < CHECK_PERIOD_S:
            return
        self._last_check = now
        try:
            found = unplaced_replicas(self._application)
        except Exception:
            # The caller asks Serve other questions, which do not depend on this one.
            logger.exception("could not ask Serve which replicas have no machine")
            return
        self._logged = {name: at for name, at in self._logged.items() if name in found and now - at < REPEAT_S}
        for name in found.keys() - self._logged.keys():
            self._logged[name] = now
            logger.warning(found[name])


def unplaced_replicas(application: str) -> dict[str, str]:
    """A sentence for each deployment of an application that has replicas without a machine; it says why.

    Blocks: asks Serve's controller.
    """
    client = serve.context._get_global_client(raise_if_no_controller_running=False)
    details = client.get_serve_details()["applications"].get(application) if client else None
    machines = [Machine(node["Resources"], node.get("Labels", {})) for node in ray.nodes() if node["Alive"]]
    return explain_unplaced(replica_groups(details, time.time()), machines) if details else {}


def editor_name(group: str) -> str:
    """The name of the deployment of a group of editors: see `config.editor_group`."""
    return f"Editor-{group}"
