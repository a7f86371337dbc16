"""The application: `build` turns the config into Serve deployments, the ingress and the editors of each group."""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` to validate the args.

import logging
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.api.app import create_app
from serve_app.config import AppConfig, JobsConfig, ModelConfig, read_ingress_settings
from serve_app.intake.service import Service
from serve_app.models.registry import MODELS
from serve_app.policy.placement import EDITOR_CPUS, GPU_EDITOR_CPUS, INGRESS_CPUS
from serve_app.replicas import metrics_export, serve_port
from serve_app.replicas.autoscaler import to_stats
from serve_app.replicas.config_folder import config_folder
from serve_app.replicas.editor import TIME_LIMITS, Editor, EngineFactory, TimeLimits, load_engine
from serve_app.replicas.editor_client import EditorHandles
from serve_app.replicas.http_host import http_host
from serve_app.replicas.router import ROUTER
from serve_app.replicas.running_editors import RunningEditors, editor_name
from serve_app.replicas.settings import SettingsReader


@serve.ingress()
class Ingress:
    """The deployment that answers HTTP: stateless, on a CPU, with several replicas."""

    def __init__(self, config: AppConfig, editors: dict[str, DeploymentHandle]) -> None:
        serve_port.keep_to_this_machine()
        meter = metrics_export.start("ingress", [model.id for model in config.models], list(editors))
        running = RunningEditors(serve.get_replica_context().app_name, list(editors))
        drain_s = shutdown_s(config.jobs) / 2
        self._service = Service(
            config, EditorHandles(editors), running, meter, running.ready_without_editor, drain_s, running.starting
        )
        self._settings = SettingsReader(read_ingress_settings)

    def check_health(self) -> None:
        """Serve calls this when the replica has started, and then every few seconds."""
        self._settings.started()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a `user_config`. Serve calls this at the start and after each change, without a restart."""
        if (read := self._settings.read(user_config)) is not None:
            settings, malformed_presets = read
            logging.getLogger("serve_app").setLevel(settings.log_level)
            self._service.reconfigure(settings, malformed_presets)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The backlog per editor group, for the autoscaling policy: see `serve_app.replicas.autoscaler`."""
        backlogs = await self._service.workload.backlogs()
        return to_stats({editor_name(group): backlog for group, backlog in backlogs.items()})

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._service)


def build(args: AppConfig) -> serve.Application:
    """The application builder that serve_config.yaml names. Raises ConfigRefused for an open history."""
    folder = Path(args.config_folder) if args.config_folder else config_folder()
    config = args.resolved(folder)
    if (host := http_host()) is not None:
        config.refuse_open_history(host)
    return build_application(config)


def build_application(
    config: AppConfig, load: EngineFactory = load_engine, time_limits: TimeLimits = TIME_LIMITS
) -> serve.Application:
    """The application for a resolved config. `load` makes an editor's engine. Raises ValueError for an unknown model.

    Tests and drills pass engines and time limits of their own.
    """
    editors = {
        group: _editor(group, settings, config, load, time_limits)
        for model in config.models
        for group, settings in model.editor_groups.items()
    }
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        # Two, so that HTTP is answered without interruption when one dies.
        num_replicas=2,
        # Polls are cheap and frequent; the job store limits the queue.
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=shutdown_s(config.jobs),
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        # One line per poll would be most of the log, and much of the cost of a poll.
        logging_config={"enable_access_log": False},
    )
    return ingress.bind(config, editors)


def shutdown_s(jobs: JobsConfig) -> float:
    """How long (s) a replica that shuts down may take to finish its requests.

    That is the time of two edits, since an editor has up to two: an edit without a step for `stall_s` is aborted.
    """
    return 2 * jobs.stall_s


def _editor(
    group: str, model: ModelConfig, config: AppConfig, load: EngineFactory, time_limits: TimeLimits
) -> serve.Application:
    """The editors of a group, with the settings of `ModelConfig.editor_groups`. Raises ValueError."""
    if model.id not in MODELS:
        raise ValueError(f"models: there is no model {model.id!r}; choose from: {', '.join(MODELS)}")
    deployment = editor_deployment(model, group).options(graceful_shutdown_timeout_s=shutdown_s(config.jobs))
    return deployment.bind(model, config.artifacts_url, config.fetch, load, time_limits, group)


def editor_deployment(model: ModelConfig, group: str | None = None) -> serve.Deployment:
    """The deployment of a group of editors, with default options. None: the group of all editors of the model."""
    needs_gpu = model.device == "cuda" or (model.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    resources: dict[str, Any] = {"num_cpus": EDITOR_CPUS}
    if needs_gpu:
        resources = {"num_cpus": GPU_EDITOR_CPUS, "num_gpus": model.gpus_per_replica}
    return serve.deployment(Editor).options(
        name=editor_name(group or model.id),
        # One edit on the device and one in preparation; the others wait in the job database, where they are counted.
        max_ongoing_requests=2,
        health_check_period_s=2,
        request_router_config=ROUTER,
        ray_actor_options=resources,
    )
