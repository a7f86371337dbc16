"""Editors by what there is to do: the shipped policy in Serve's controller, fed by the ingresses."""

import time

import httpx
import pytest
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config, replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppConfig
from serve_app.policy.scaling import Backlog
from serve_app.replicas.autoscaler import Autoscaler, to_stats
from tests.conftest import LORAS
from tests.service.conftest import Deployed
from tests.service.standin import NotingEngine, as_checkpoint

EDITOR = "Editor-qwen_image_edit"


INGRESS, LORA = "Ingress", "my_lora_job/my_lora.safetensors"
NOW = 1000.0


def context(name: str, running: int = 0, reports: dict[str, tuple[float, Backlog]] | None = None) -> AutoscalingContext:
    """What Serve's controller hands to a policy; `reports` are those of ingresses, with when they looked."""
    id = DeploymentID(name, "edits")
    raw: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = {}
    for replica, (at, backlog) in (reports or {}).items():
        for key, value in to_stats({EDITOR: backlog}).items():
            raw.setdefault(key, {})[ReplicaID(replica, id)] = [TimeStampedValue(at, value)]
    config = AutoscalingConfig(min_replicas=0, max_replicas=8)
    return AutoscalingContext(
        id, name, "edits", running, running, [], 0.0, 0.0, {}, raw, 0, 8, {}, None, None, NOW, config
    )


def decided(*contexts: AutoscalingContext) -> dict[str, int]:
    """What Serve makes of the policy's answer."""
    policy = _apply_app_level_autoscaling_config(Autoscaler())
    decisions, _ = policy({context.deployment_id: context for context in contexts})
    return {id.name: replicas for id, replicas in decisions.items()}


def test_the_newest_report_counts_and_serve_adds_no_delay():
    reports = {"a": (NOW - 1, Backlog(200, 0, 20, 5)), "b": (NOW - 3, Backlog(900, 0, 90, 5))}
    assert decided(context(INGRESS, 2, reports), context(EDITOR))[EDITOR] == 4
    assert decided(context(INGRESS, 2, reports), context(EDITOR, 1))[EDITOR] == 3


def test_work_for_a_tier_starts_the_editors_of_that_tier_alone():
    of_tier = f"{EDITOR}-fast"
    stats = to_stats({EDITOR: Backlog(), of_tier: Backlog(200, 0, 20, 5)})
    ingress = context(INGRESS, 2)
    points = {key: {ReplicaID("a", ingress.deployment_id): [TimeStampedValue(NOW, stats[key])]} for key in stats}
    ingress.raw_metrics.update(points)
    wanted = decided(ingress, context(EDITOR), context(of_tier))
    assert (wanted[EDITOR], wanted[of_tier]) == (0, 4)


def test_without_a_recent_report_nothing_is_decided_for_editors():
    old = {"a": (NOW - 60, Backlog(200, 0, 20, 5))}
    for reports in (None, old):
        assert EDITOR not in decided(context(INGRESS, 2, reports), context(EDITOR, 1))


def test_what_is_no_editor_scales_as_serve_does():
    busy = context(INGRESS, 2)
    busy.total_num_requests = 9.0
    policy, default = Autoscaler(), replica_queue_length_autoscaling_policy(busy)
    assert policy({busy.deployment_id: busy})[0] == {busy.deployment_id: default[0]}


@pytest.fixture
def asleep(cluster, tmp_path):
    """An application whose editors may be none, and are."""
    args = {
        "lora_root": str(LORAS),
        "artifacts_url": f"{tmp_path}/artifacts",
        "models": [{"checkpoint": str(as_checkpoint(tmp_path)), "device": "cpu"}],
        "jobs": {"database_url": f"sqlite+aiosqlite:///{tmp_path}/jobs.sqlite3", "lease_s": 3},
        "require_lora": False,
    }
    limits = {"min_replicas": 0, "max_replicas": 2, "downscale_delay_s": 2, "downscale_to_zero_delay_s": 2}
    declared = {
        "name": "asleep",
        "route_prefix": "/asleep",
        "import_path": "tests.service.builds:timed",
        "autoscaling_policy": {"policy_function": "serve_app.replicas.autoscaler:Autoscaler"},
        "args": args,
        "deployments": [
            {
                "name": "Ingress",
                "autoscaling_config": {"min_replicas": 2, "max_replicas": 2, "metrics_interval_s": 0.5},
                "user_config": {"keep_warm": [LORA]},
            },
            {"name": EDITOR, "autoscaling_config": limits},
        ],
    }
    serve.context._get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [declared]}))
    client = httpx.Client(base_url=f"http://127.0.0.1:{cluster}/asleep", timeout=30)
    deployed = Deployed("asleep", client, tmp_path, AppConfig.model_validate(args), NotingEngine)
    deployed.wait_until_ready()
    yield deployed
    serve.delete("asleep")
    client.close()


def test_work_at_no_replicas_waits_for_one_that_goes_once_it_is_idle(asleep, make_body):
    assert asleep.replica_pids(EDITOR) == []
    result, _ = asleep.edit(make_body(sample_steps=2, seed=7, loras=[]))
    assert result["status"] == "succeeded"
    # What is to be kept warm was there before it took the edit.
    notes = (asleep.folder / "notes").read_text().splitlines()
    first, *others = [note for note in notes if not note.startswith("started")]
    assert first == f"warmed up {LORA}"
    assert set(others) == {first, "made 7"}
    assert others.count("made 7") == 1
    assert len(asleep.replica_pids(EDITOR)) == 1
    deadline = time.monotonic() + 60
    while asleep.replica_pids(EDITOR):
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.2)
    assert asleep.is_ready()
