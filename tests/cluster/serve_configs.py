"""Every serve config that ships, and what is wrong with one: by Ray's schema, by our own, and by what `build` makes."""

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from ray.serve._private.build_app import build_app
from ray.serve.config import AutoscalingConfig
from ray.serve.deployment import Deployment
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from serve_app.app import build_application
from serve_app.config import AppConfig, EditorSettings, IngressSettings
from serve_app.replicas.autoscaler import STALE_S, Autoscaler
from tests.cluster.manifests import OVERLAYS, ROOT, build, only

FILES = sorted([*ROOT.glob("serve_config*.yaml"), *ROOT.glob("cluster/**/serve_config*.yaml")])

# What ${...} may stand for where a config is checked; each place that ships one has to provide the same names.
VARIABLES = {
    "DATABASE_URL": "postgresql+asyncpg://edits:word@host/edits",
    "WEBHOOK_SECRET": "whsec_" + "A" * 32,
    "ARTIFACTS_URL": "s3://edits/artifacts",
    "LORA_ROOT": "s3://edits/loras",
    "KEYS_FILE": "/etc/edits/keys.yaml",
}


# Where each serve config lies.
SHIPPED = [str(path.relative_to(ROOT)) for path in [*FILES, *OVERLAYS]]


def shipped(place: str) -> str:
    """The text of the serve config that lies there; an overlay has it in its RayService."""
    path = ROOT / place
    if path in OVERLAYS:
        return str(only(build(path), "RayService")["spec"]["serveConfigV2"])
    return path.read_text()


def variables(text: str) -> set[str]:
    """The names in ${...}, comments left out."""
    return set(re.findall(r"\$\{(\w+)\}", yaml.safe_dump(yaml.safe_load(text))))


def problems(text: str) -> list[str]:
    """Keys that Ray would drop without a word, and deployments that are not as the config thinks.

    Raises pydantic's ValidationError where a key has a value that Ray or AppConfig refuses.
    """
    raw = yaml.safe_load(text)
    found = list(_unknown_keys(raw, ServeDeploySchema, "serve config"))
    for application in ServeDeploySchema.model_validate(raw).applications:
        found += _deployment_problems(application)
    return found


def deployments(args: dict[str, Any]) -> dict[str, Deployment]:
    """What `build` makes of these args, by name; a device that is left to the cluster is a CPU here."""
    config = AppConfig.model_validate(args)
    models = tuple(m.model_copy(update={"device": "cpu"}) if m.device == "auto" else m for m in config.models)
    app = build_application(config.model_copy(update={"models": models}))
    return {deployment.name: deployment for deployment in build_app(app, name="edits").deployments}


def _deployment_problems(application: ServeApplicationSchema) -> Iterator[str]:
    if application.import_path != "serve_app.app:build":
        yield f"{application.import_path} is no builder of ours"
    made = deployments(application.args)
    yield from _scaling_problems(application)
    for options in application.model_dump(exclude_unset=True).get("deployments", []):
        name = options["name"]
        # The schema passes any dict; Serve's controller reads it only once the application deploys.
        if "autoscaling_config" in options:
            AutoscalingConfig.model_validate(options["autoscaling_config"])
        if "user_config" in options:
            (IngressSettings if name == "Ingress" else EditorSettings).model_validate(options["user_config"])
        if name not in made:
            yield f"{name} is not made; {', '.join(made)} are"
        elif "ray_actor_options" in options:
            # Ray takes the override's dict instead of the code's: a GPU that is not repeated in it is gone.
            for key, value in (made[name].ray_actor_options or {}).items():
                if options["ray_actor_options"].get(key) != value:
                    yield f"{name}: ray_actor_options says no {key}: {value}, as the code does"


def _scaling_problems(application: ServeApplicationSchema) -> Iterator[str]:
    """The policy is there, takes its keywords, and is told by the ingresses what there is to do."""
    policy = application.autoscaling_policy or {}
    if policy.get("policy_function") != f"{Autoscaler.__module__}:{Autoscaler.__name__}":
        yield "autoscaling_policy is not ours: editors would be started by calls that are not made without them"
        return
    try:
        inspect.signature(Autoscaler).bind(**policy.get("policy_kwargs", {}))
    except TypeError as error:
        yield f"autoscaling_policy.policy_kwargs: {error}"
    options = {option.name: option.model_dump(exclude_unset=True) for option in application.deployments}
    ingress = options.get("Ingress", {}).get("autoscaling_config")
    if not ingress or AutoscalingConfig.model_validate(ingress).metrics_interval_s > STALE_S / 3:
        yield f"Ingress: Serve asks it what there is to do every {STALE_S / 3:g} s with a metrics_interval_s alone"


def _unknown_keys(value: Any, hint: Any, path: str) -> Iterator[str]:
    """Keys of dicts that stand where `hint` has a pydantic model without such a field."""
    if isinstance(value, list):
        for inner in value:
            for kind in typing.get_args(hint):
                yield from _unknown_keys(inner, kind, path)
    elif isinstance(value, dict) and isinstance(hint, type) and issubclass(hint, BaseModel):
        for key, inner in value.items():
            if key in hint.model_fields:
                yield from _unknown_keys(inner, hint.model_fields[key].annotation, f"{path}.{key}")
            else:
                yield f"{path}.{key}: {hint.__name__} has no such field"
    else:
        for kind in typing.get_args(hint):
            yield from _unknown_keys(value, kind, path)
