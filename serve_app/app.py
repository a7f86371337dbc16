"""The application: `build` turns the config into deployments. The only place where they meet."""

# No `from __future__ import annotations` here: Serve reads build's annotation to validate the args.

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview
from starlette.types import ASGIApp

from serve_app import meter, replica_port
from serve_app.autoscaler import to_stats
from serve_app.config import AppConfig, IngressSettings, JobsConfig, ModelConfig
from serve_app.config_folder import config_folder
from serve_app.editor import TIME_LIMITS, Editor, EditorHandles, EngineFactory, TimeLimits, load_engine
from serve_app.ingress import create_app
from serve_app.models.registry import MODELS
from serve_app.placement import EDITOR_CPUS, GPU_EDITOR_CPUS, INGRESS_CPUS, Machine, fleets, unplaced
from serve_app.router import ROUTER
from serve_app.service import Service

# How long a number of editors counts; twice as long is waited for a new one while there is an old one.
EDITORS_TTL_S = 1.0
# How long the first answer is waited for (s).
FIRST_ANSWER_S = 10.0
# How often replicas without a machine are looked for, and how often the log names the same ones (s).
LOOK_S, REPEAT_S = 5.0, 60.0

logger = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """An HTTP replica: stateless, on a CPU, one of several."""

    def __init__(self, config: AppConfig, editors: dict[str, DeploymentHandle]) -> None:
        replica_port.keep_to_this_machine()
        told = meter.start("ingress", list(editors))
        running = RunningEditors(serve.get_replica_context().app_name, list(editors))
        drain_s = shutdown_s(config.jobs) / 2
        self._service = Service(config, EditorHandles(editors), running, told, running.asleep, drain_s)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """What Serve calls at the start and at a change of `user_config`, in place."""
        settings = IngressSettings.model_validate(user_config)
        logging.getLogger("serve_app").setLevel(settings.log_level)
        self._service.reconfigure(settings)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve takes to the autoscaling policy: see `serve_app.autoscaler`."""
        backlogs = await self._service.backlogs()
        return to_stats({editor_name(model): backlog for model, backlog in backlogs.items()})

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._service)


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


def build(args: AppConfig) -> serve.Application:
    """The builder that serve_config.yaml names."""
    folder = Path(args.config_folder) if args.config_folder else config_folder()
    return build_application(args.resolved(folder))


def build_application(
    config: AppConfig, load: EngineFactory = load_engine, time_limits: TimeLimits = TIME_LIMITS
) -> serve.Application:
    """The application for a resolved config. `load` makes a replica's engine; a drill shortens its time limits."""
    editors = {model.id: _editor(model, config, load, time_limits) for model in config.models}
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        # Two, so that one may die without a second of silence.
        num_replicas=2,
        # Polls are cheap and many; admission is the job store's business.
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=shutdown_s(config.jobs),
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        # A line a poll would be most of the log, and much of the work of a poll.
        logging_config={"enable_access_log": False},
    )
    return ingress.bind(config, editors)


def shutdown_s(jobs: JobsConfig) -> float:
    """How long a replica that is told to go gets for what it has begun.

    Two edits, one after the other, as an editor may have: one that makes no step for `stall_s` is given up before.
    """
    return 2 * jobs.stall_s


def _editor(model: ModelConfig, config: AppConfig, load: EngineFactory, time_limits: TimeLimits) -> serve.Application:
    if model.id not in MODELS:
        raise ValueError(f"models: there is no model {model.id!r}; there is: {', '.join(MODELS)}")
    deployment = editor_deployment(model).options(graceful_shutdown_timeout_s=shutdown_s(config.jobs))
    return deployment.bind(model, config.artifacts_url, config.fetch, load, time_limits)


def editor_deployment(model: ModelConfig) -> serve.Deployment:
    """The editors of a model, as they ship."""
    needs_gpu = model.device == "cuda" or (model.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    resources: dict[str, Any] = {"num_cpus": EDITOR_CPUS}
    if needs_gpu:
        resources = {"num_cpus": GPU_EDITOR_CPUS, "num_gpus": model.gpus_per_replica}
    return serve.deployment(Editor).options(
        name=editor_name(model.id),
        # One edit on the device and one being prepared; the rest waits where it can be counted.
        max_ongoing_requests=2,
        health_check_period_s=2,
        request_router_config=ROUTER,
        ray_actor_options=resources,
    )
