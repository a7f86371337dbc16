"""Replicas that no machine has room for: which ones are named, and with which reason."""

from typing import Any

import pytest

from serve_app.policy.placement import (
    EDITOR_CPUS,
    INGRESS_CPUS,
    PATIENCE_S,
    Machine,
    ReplicaGroup,
    explain_unplaced,
    replica_groups,
)

NOW = 1000.0
LATE = PATIENCE_S + 5


def deployment(*replicas: dict[str, Any], **options: object) -> dict[str, Any]:
    return {"deployment_config": {"ray_actor_options": options}, "replicas": list(replicas)}


def replica(state: str, node: str | None = None) -> dict[str, Any]:
    placed = {"node_id": node} if node else {}
    return {"state": state, "start_time_s": NOW - LATE} | placed


def test_serves_details_become_groups_of_replicas_with_their_resources_and_waits():
    application = {
        "deployments": {
            "Editor-a": deployment(replica("STARTING", "n1"), num_cpus=1.0, num_gpus=2.0, resources={"disk": 1}),
            "Ingress": deployment(
                replica("RUNNING", "n1"), replica("STARTING"), num_cpus=0.25, label_selector={"role": "ingress"}
            ),
        }
    }
    assert replica_groups(application, NOW) == [
        # One that loads its weights has a machine.
        ReplicaGroup("Editor-a", {"CPU": 1.0, "GPU": 2.0, "disk": 1.0}, 1),
        ReplicaGroup("Ingress", {"CPU": 0.25}, 1, (LATE,), {"role": "ingress"}),
    ]


def test_reason_names_the_editors_that_have_the_cores_an_ingress_waits_for():
    taken = [ReplicaGroup("Editor-a", {"CPU": 1.0}, 1), ReplicaGroup("Editor-b", {"CPU": 1.0}, 1)]
    waiting = ReplicaGroup("Ingress", {"CPU": 0.25}, 0, (20.0, 19.0))
    assert explain_unplaced([*taken, waiting], [Machine({"CPU": 2.0})]) == {
        "Ingress": "Ingress: 2 of 2 replicas have no machine after 20 s. Each asks for 0.25 CPU, and no machine has "
        "that free (of 2 CPU, Editor-a has 1, Editor-b has 1). Add a machine, serve fewer models or replicas, or lower "
        "`ray_actor_options: {num_cpus: ...}` of a deployment in the serve config"
    }


def test_resource_that_no_machine_has_is_named():
    waiting = ReplicaGroup("Editor-a", {"CPU": 1.0, "GPU": 1.0}, 1, (20.0,))
    sentence = explain_unplaced([waiting], [Machine({"CPU": 8.0}), Machine({"CPU": 4.0})])["Editor-a"]
    assert sentence.startswith(
        "Editor-a: 1 of 2 replicas has no machine after 20 s. Each asks for 1 CPU and 1 GPU, and the best "
        "matching machine has 8 CPU and 0 GPU. Add a machine, serve fewer models or replicas, set the model's device "
        "to cpu, or lower `ray_actor_options: {num_gpus: ...}`"
    )


@pytest.mark.parametrize(
    ("selector", "machine", "reason"),
    [
        ({"role": "ingress"}, {"role": "editor"}, "there is no such machine"),
        ({"role": "ingress"}, {}, "there is no such machine"),
        ({"role": "ingress"}, {"role": "ingress"}, "no machine has that free"),
        ({"role": "!editor"}, {"role": "ingress"}, "no machine has that free"),
    ],
)
def test_machines_without_the_label_do_not_count(selector, machine, reason):
    waiting = ReplicaGroup("Ingress", {"CPU": 0.25}, 0, (20.0,), selector)
    taken = ReplicaGroup("Editor-a", {"CPU": 1.0}, 2)
    [sentence] = explain_unplaced([taken, waiting], [Machine({"CPU": 2.0}, machine)]).values()
    assert reason in sentence
    assert f"0.25 CPU on a machine labelled role: {selector['role']}" in sentence


def test_best_matching_machine_is_a_single_machine():
    """One has the CPUs, another the GPU: no machine has both."""
    waiting = ReplicaGroup("Editor-a", {"CPU": 4.0, "GPU": 1.0}, 0, (20.0,))
    [sentence] = explain_unplaced([waiting], [Machine({"CPU": 8.0}), Machine({"CPU": 2.0, "GPU": 1.0})]).values()
    assert "the best matching machine has 8 CPU and 0 GPU" in sentence


def test_reason_does_not_claim_that_there_is_no_room_if_this_application_leaves_room():
    taken, waiting = ReplicaGroup("Editor-a", {"CPU": 0.1}, 1), ReplicaGroup("Ingress", {"CPU": 0.25}, 0, (20.0, 19.0))
    [sentence] = explain_unplaced([taken, waiting], [Machine({"CPU": 2.0})]).values()
    assert sentence == (
        "Ingress: 2 of 2 replicas have no machine after 20 s. Each asks for 0.25 CPU, and this application leaves room "
        "for that (of 2 CPU, Editor-a has 0.1): its process is still starting, or another application has the room. "
        "`ray status` shows what is in use"
    )
    [sentence] = explain_unplaced([taken, waiting], [Machine({"CPU": 2.0})] * 2).values()
    assert "another application has the room, or no machine has all of it free" in sentence
    # The last piece counts, however it was summed.
    many = ReplicaGroup("Editor-a", {"CPU": 0.1}, 19)
    [sentence] = explain_unplaced(
        [many, ReplicaGroup("Ingress", {"CPU": 0.1}, 0, (20.0,))], [Machine({"CPU": 2.0})]
    ).values()
    assert "leaves room" in sentence


def test_replica_that_has_just_begun_to_wait_is_not_named():
    waiting = ReplicaGroup("Ingress", {"CPU": 0.25}, 0, (PATIENCE_S - 1,))
    assert explain_unplaced([waiting], [Machine({"CPU": 0.0})]) == {}


def test_ten_editors_without_a_gpu_leave_room_for_the_ingresses_on_two_cores():
    assert 10 * EDITOR_CPUS + 2 * INGRESS_CPUS <= 2
