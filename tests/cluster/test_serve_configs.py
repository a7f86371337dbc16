import pytest
from pydantic import ValidationError

from tests.cluster.serve_configs import VARIABLES, problems, shipped, variables

SHIPPED = shipped()
MANY = SHIPPED["cluster/kuberay/overlays/many-gpus"]
EDITOR = "name: Editor-qwen_image_edit"


@pytest.mark.parametrize("place", SHIPPED)
def test_a_shipped_config_is_what_ray_and_the_builder_understand(place: str) -> None:
    assert variables(SHIPPED[place]) <= VARIABLES.keys()
    assert problems(SHIPPED[place]) == []


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("proxy_location:", "proxy_locations:", "serve config.proxy_locations"),
        ("http_options: {host", "http_options: {hosts", "serve config.http_options.hosts"),
        ("route_prefix:", "route:", "serve config.applications.route"),
        ("max_replicas_per_node:", "per_node:", "serve config.applications.deployments.per_node"),
        ("downscale_delay_s", "delay_s", "serve config.applications.deployments.autoscaling_config.delay_s"),
        ("autoscaler:Autoscaler", "autoscaler:Scaler", "autoscaling_policy is not ours"),
        ("autoscaling_policy:", "policy:", "autoscaling_policy is not ours"),
        (
            'Autoscaler"}',
            'Autoscaler", policy_kwargs: {wait: 1}}',
            "autoscaling_policy.policy_kwargs: got an unexpected",
        ),
        (", metrics_interval_s: 1", "", "Ingress: Serve asks it"),
        ("num_gpus: 1", "gpus: 1", "serve config.applications.deployments.ray_actor_options.gpus"),
        (EDITOR, "name: Editor-qwen", "Editor-qwen is not made"),
        (EDITOR, "name: Editor", "Editor is not made"),
        ("num_gpus: 1, ", "", "Editor-qwen_image_edit: ray_actor_options says no num_gpus: 1"),
        ("num_cpus: 0.25, ", "", "Ingress: ray_actor_options says no num_cpus: 0.25"),
        ("serve_app.app:build", "serve_app.app:built", "serve_app.app:built is no builder of ours"),
    ],
)
def test_what_ray_would_pass_over_is_found(right: str, wrong: str, complaint: str) -> None:
    assert any(found.startswith(complaint) for found in problems(_planted(right, wrong)))


@pytest.mark.parametrize(
    ("right", "wrong", "where"),
    [
        ("proxy_location: EveryNode", "proxy_location: Everywhere", "proxy_location"),
        ("port: 8000", "port: http", "port"),
        ("max_replicas: 8", "max_replicas: 1", "max_replicas"),
        ("log_level: INFO", "log_level: LOUD", "log_level"),
        ("log_level: INFO", "keep_hot: [a]", "keep_hot"),
        ("num_gpus: 1", "num_gpus: -1", "num_gpus"),
        ("artifacts_url:", "artefacts_url:", "artefacts_url"),
        ("device: cuda", "device: gpu", "device"),
        ("keys_file:", "key_file:", "key_file"),
        ("${WEBHOOK_SECRET}", "${NOT_SET}", "NOT_SET"),
    ],
)
def test_a_value_that_ray_or_the_config_refuses_is_found(right: str, wrong: str, where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        problems(_planted(right, wrong))


def test_the_variables_of_comments_are_nobodys() -> None:
    assert variables("a: ${ONE} # ${TWO}") == {"ONE"}


def _planted(right: str, wrong: str) -> str:
    assert right in MANY
    return MANY.replace(right, wrong, 1)
