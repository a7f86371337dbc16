"""Which editors run, and which replicas no machine has room for: questions to Serve's controller."""

import asyncio
import logging
import time
from collections.abc import Mapping

import ray
from ray import serve
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview

from serve_app.policy.placement import Machine, fleets, unplaced

# How long a number of editors counts; twice as long is waited for a new one while there is an old one.
EDITORS_TTL_S = 1.0
# How long the first answer is waited for (s).
FIRST_ANSWER_S = 10.0
# How often replicas without a machine are looked for, and how often the log names the same ones (s).
LOOK_S, REPEAT_S = 5.0, 60.0

logger = logging.getLogger(__name__)


class RunningEditors:
    """How many running editors each model has, as Serve's controller knows it; asked once a second at most.

    While the controller does not answer, it is what was known before: a head is away for a minute when it is replaced,
    and editors work on.
    """

    def __init__(self, application: str, models: list[str], ttl_s: float = EDITORS_TTL_S) -> None:
        self._application = application
        self._models = models
        self._ttl_s = ttl_s
        self._known: Mapping[str, DeploymentStatusOverview] = {}
        self._asked = float("-inf")
        self._asking: asyncio.Task[Mapping[str, DeploymentStatusOverview]] | None = None
        self._placement = PlacementLog(application)

    async def __call__(self) -> Mapping[str, int]:
        # One at a time: two threads that read a status with an autoscaling policy in it make each other fail.
        if self._asking is None and time.monotonic() - self._asked > self._ttl_s:
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
        if (asking := self._asking) is not None:
            await asyncio.wait([asking], timeout=2 * self._ttl_s if self._known else FIRST_ANSWER_S)
            if asking.done() and self._asking is asking:
                self._asking, self._asked = None, time.monotonic()
                self._take(asking)
        return {model: known.replica_states.get("RUNNING", 0) for model, known in self._known.items()}

    def _take(self, answer: asyncio.Task[Mapping[str, DeploymentStatusOverview]]) -> None:
        """Know what was answered; a controller that fails, or is new and knows nothing yet, says nothing."""
        if answer.exception() is not None:
            logger.warning("Serve's controller did not say how many editors run", exc_info=answer.exception())
        elif answer.result():
            self._known = answer.result()

    def asleep(self) -> frozenset[str]:
        """The models without an editor that are as they should be: there is nothing to do, or one is being started."""
        well = (DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING)
        return frozenset(
            model
            for model, known in self._known.items()
            if not known.replica_states.get("RUNNING", 0) and known.status in well
        )

    def _ask(self) -> Mapping[str, DeploymentStatusOverview]:
        application = serve.status().applications.get(self._application)
        deployments = application.deployments if application else {}
        if any("STARTING" in deployment.replica_states for deployment in deployments.values()):
            self._placement.look()
        return {model: deployments[editor_name(model)] for model in self._models if editor_name(model) in deployments}


class PlacementLog:
    """Names replicas that no machine has room for in the log, once they have waited and every minute after that.

    Serve itself waits for ever. Any process of the cluster may look, as often as it likes: `edits-server run` does, and
    each ingress, so that the same sentence may stand in the log of each.
    """

    def __init__(self, application: str) -> None:
        self._application = application
        self._looked = float("-inf")
        self._logged: dict[str, float] = {}

    def look(self) -> None:
        """Blocks: asks Serve's controller."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            found = unplaced_replicas(self._application)
        except Exception:
            # The caller has other questions to Serve, which do not depend on this one.
            logger.exception("could not ask Serve which replicas have no machine")
            return
        self._logged = {name: at for name, at in self._logged.items() if name in found and now - at < REPEAT_S}
        for name in found.keys() - self._logged.keys():
            self._logged[name] = now
            logger.warning(found[name])


def unplaced_replicas(application: str) -> dict[str, str]:
    """Why which deployments of an application have replicas without a machine. Blocks: asks Serve's controller."""
    client = serve.context._get_global_client(raise_if_no_controller_running=False)
    details = client.get_serve_details()["applications"].get(application) if client else None
    machines = [Machine(node["Resources"], node.get("Labels", {})) for node in ray.nodes() if node["Alive"]]
    return unplaced(fleets(details, time.time()), machines) if details else {}


def editor_name(model_id: str) -> str:
    return f"Editor-{model_id}"
