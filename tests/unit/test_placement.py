"""Replicas that no machine has room for: which are named, and what is said of them."""

from typing import Any

import pytest

from serve_app.policy.placement import EDITOR_CPUS, INGRESS_CPUS, PATIENCE_S, Fleet, Machine, fleets, unplaced

NOW = 1000.0
LATE = PATIENCE_S + 5


def deployment(*replicas: dict[str, Any], **options: object) -> dict[str, Any]:
    return {"deployment_config": {"ray_actor_options": options}, "replicas": list(replicas)}


def replica(state: str, node: str | None = None) -> dict[str, Any]:
    placed = {"node_id": node} if node else {}
    return {"state": state, "start_time_s": NOW - LATE} | placed


def test_serves_details_say_who_has_no_machine_and_what_each_asks_for():
    application = {
        "deployments": {
            "Editor-a": deployment(replica("STARTING", "n1"), num_cpus=1.0, num_gpus=2.0, resources={"disk": 1}),
            "Ingress": deployment(
                replica("RUNNING", "n1"), replica("STARTING"), num_cpus=0.25, label_selector={"role": "ingress"}
            ),
        }
    }
    assert fleets(application, NOW) == [
        # One that loads its weights has a machine.
        Fleet("Editor-a", {"CPU": 1.0, "GPU": 2.0, "disk": 1.0}, 1),
        Fleet("Ingress", {"CPU": 0.25}, 1, (LATE,), {"role": "ingress"}),
    ]


def test_ingresses_that_wait_for_two_editors_on_two_cores_are_told_who_has_them():
    taken = [Fleet("Editor-a", {"CPU": 1.0}, 1), Fleet("Editor-b", {"CPU": 1.0}, 1)]
    waiting = Fleet("Ingress", {"CPU": 0.25}, 0, (20.0, 19.0))
    assert unplaced([*taken, waiting], [Machine({"CPU": 2.0})]) == {
        "Ingress": "Ingress: 2 of 2 replicas have no machine after 20 s. Each asks for 0.25 CPU, and no machine has "
        "that free (of 2 CPU, Editor-a has 1, Editor-b has 1). Add a machine, serve fewer models or replicas, or lower "
        "`ray_actor_options: {num_cpus: ...}` of a deployment in the serve config"
    }


def test_what_no_machine_has_at_all_is_told_apart():
    waiting = Fleet("Editor-a", {"CPU": 1.0, "GPU": 1.0}, 1, (20.0,))
    told = unplaced([waiting], [Machine({"CPU": 8.0}), Machine({"CPU": 4.0})])["Editor-a"]
    assert told.startswith(
        "Editor-a: 1 of 2 replicas has no machine after 20 s. Each asks for 1 CPU and 1 GPU, and the machine "
        "that comes nearest has 8 CPU and 0 GPU. Add a machine, serve fewer models or replicas, set the model's device "
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
    waiting = Fleet("Ingress", {"CPU": 0.25}, 0, (20.0,), selector)
    taken = Fleet("Editor-a", {"CPU": 1.0}, 2)
    [told] = unplaced([taken, waiting], [Machine({"CPU": 2.0}, machine)]).values()
    assert reason in told
    assert f"0.25 CPU on a machine labelled role: {selector['role']}" in told


def test_the_machine_that_comes_nearest_is_one_machine():
    """One has the CPUs, another the GPU: no machine has both."""
    waiting = Fleet("Editor-a", {"CPU": 4.0, "GPU": 1.0}, 0, (20.0,))
    [told] = unplaced([waiting], [Machine({"CPU": 8.0}), Machine({"CPU": 2.0, "GPU": 1.0})]).values()
    assert "the machine that comes nearest has 8 CPU and 0 GPU" in told


def test_replica_for_which_this_application_leaves_room_is_not_told_that_there_is_none():
    taken, waiting = Fleet("Editor-a", {"CPU": 0.1}, 1), Fleet("Ingress", {"CPU": 0.25}, 0, (20.0, 19.0))
    [told] = unplaced([taken, waiting], [Machine({"CPU": 2.0})]).values()
    assert told == (
        "Ingress: 2 of 2 replicas have no machine after 20 s. Each asks for 0.25 CPU, and this application leaves room "
        "for that (of 2 CPU, Editor-a has 0.1): its process is still starting, or another application has the room. "
        "`ray status` shows what is in use"
    )
    [told] = unplaced([taken, waiting], [Machine({"CPU": 2.0})] * 2).values()
    assert "another application has the room, or no machine has all of it free" in told
    # The last piece counts, however it was summed.
    many = Fleet("Editor-a", {"CPU": 0.1}, 19)
    [told] = unplaced([many, Fleet("Ingress", {"CPU": 0.1}, 0, (20.0,))], [Machine({"CPU": 2.0})]).values()
    assert "leaves room" in told


def test_replica_that_has_just_begun_to_wait_is_not_named():
    waiting = Fleet("Ingress", {"CPU": 0.25}, 0, (PATIENCE_S - 1,))
    assert unplaced([waiting], [Machine({"CPU": 0.0})]) == {}


def test_ten_editors_without_a_gpu_leave_room_for_the_ingresses_on_two_cores():
    assert 10 * EDITOR_CPUS + 2 * INGRESS_CPUS <= 2
