"""Sweeps over the application in this process: what is made, in which order, and what is refused."""

from itertools import pairwise
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.config import AuthConfig
from serve_app.errors import EditError
from serve_app.intake.keys import new_key
from serve_app.policy.path_patterns import compiled
from tests.conformity import code_of, events
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import LORA, SHARES_AN_APPLICATION, Application, safetensors_bytes
from tests.unit.serving import wait_until
from tests.unit.sweeps import add_checkpoints, ended, started, statuses, sweep, sweep_body
from tests.unit.test_http_contract import finished

pytestmark = SHARES_AN_APPLICATION


def test_one_image_for_each_combination_of_values(client, config, application, make_body):
    paths = add_checkpoints(config, "a_000000250.safetensors", "a_000000500.safetensors")
    body = sweep_body(
        make_body, checkpoints=[None, *paths], multipliers=[0.5, 1.0], seeds=[1, 2], prompts=["one", "two"]
    )
    answer = started(client, body)
    assert (answer["status"], answer["cells"]) == ("queued", 20)
    shown = ended(client, answer["sweep_id"])
    assert shown["status"] == "succeeded"
    assert shown["counts"] == {"in_queue": 0, "in_progress": 0, "succeeded": 20, "failed": 0, "canceled": 0}
    made = [(t.plan.adapters, t.plan.prompt, t.plan.seed) for t in application.editors.tasks]
    combinations = {(tuple((use.path, use.scale) for use in uses), prompt, seed) for uses, prompt, seed in made}
    assert len(made) == len(combinations) == 20
    assert {len(uses) for uses, _, _ in combinations} == {0, 1}


def test_cells_with_the_same_adapters_follow_each_other(client, config, application, make_body):
    paths = add_checkpoints(config, "a_000000250.safetensors", "a_000000500.safetensors")
    body = sweep_body(make_body, checkpoints=paths, multipliers=[0.5, 1.0], seeds=[1, 2], prompts=["one", "two"])
    shown = ended(client, started(client, body)["sweep_id"])
    places = [cell["place"] for cell in shown["grid"]]
    settings = [(place["checkpoint"], place["multiplier"]) for place in places]
    changes = sum(one != other for one, other in pairwise(settings))
    assert changes == 3
    # Within each setting, prompts come in the same order.
    assert [place["prompt"] for place in places[:4]] == [0, 0, 1, 1]
    by_id = {task.request_id: index for index, task in enumerate(application.editors.tasks)}
    assert [by_id[cell["request_id"]] for cell in shown["grid"]] == sorted(by_id.values())


def test_cells_are_ordinary_requests(client, make_body):
    shown = ended(client, started(client, sweep_body(make_body, seeds=[7, 8]))["sweep_id"])
    result = client.get(f"/v1/requests/{shown['grid'][1]['request_id']}/result").json()
    assert result["status"] == "succeeded"
    [image] = result["outputs"]["images"]
    assert (image["seed"], image["format"]) == (8, "png")
    assert shown["grid"][1]["url"] == image["url"]


def test_cells_have_the_plan_of_the_same_request_sent_alone(client, config, application, make_body):
    [path] = add_checkpoints(config, "a_000000250.safetensors")
    axes = {"checkpoints": [path], "multipliers": [0.25, 0.75], "prompts": ["first [trigger]", "second"], "seeds": [3]}
    body = sweep_body(make_body, **axes)
    body["base"]["trigger_word"] = "sks"
    ended(client, started(client, body)["sweep_id"])
    of_sweep = [task.plan for task in application.editors.tasks]
    alone = make_body(prompt="second", seed=3, loras=[{"path": path, "network_multiplier": 0.75}])
    alone |= {"trigger_word": "sks", "output_format": "png"}
    finished(client, alone)
    assert application.editors.tasks[-1].plan in of_sweep
    assert {plan.prompt for plan in of_sweep} == {"first sks", "second"}


def test_dry_run_starts_nothing(client, application, make_body):
    body = sweep_body(make_body, seeds=[1, 2, 3]) | {"dry_run": True}
    answer = started(client, body)
    assert (answer["status"], answer["cells"], answer["sweep_id"], answer["status_url"]) == ("dry_run", 3, None, None)
    assert not application.editors.tasks


def test_predicts_seconds_from_measured_edits(client, make_body):
    body = sweep_body(make_body, seeds=[1, 2])
    assert started(client, body | {"dry_run": True})["predicted_gpu_seconds"] is None
    ended(client, started(client, body)["sweep_id"])
    # The instant editors say that an edit took a second.
    assert started(client, body | {"dry_run": True})["predicted_gpu_seconds"] == 2.0


def test_too_many_cells_are_refused_before_anything_is_looked_up(client, make_body):
    body = sweep_body(make_body, seeds=list(range(40)), multipliers=[0.5, 1.0], checkpoints=["no/such.safetensors"])
    answer = client.post("/v1/sweeps", json=body | {"max_cells": 79})
    assert answer.status_code == 400
    error = answer.json()["detail"]["error"]
    assert (error["code"], error["details"]) == (
        "INVALID_PARAMETER",
        {"parameter": "max_cells", "cells": 80, "max": 79},
    )
    # The config's limit is 1000.
    body = sweep_body(make_body, seeds=list(range(1000)), multipliers=[0.5, 1.0])
    assert client.post("/v1/sweeps", json=body).json()["detail"]["error"]["details"]["max"] == 1000


def test_patterns_count_with_their_files(client, config, make_body):
    add_checkpoints(config, "a_000000250.safetensors", "a_000000500.safetensors", "a.safetensors")
    body = sweep_body(make_body, checkpoints=["job/a*.safetensors"])
    assert client.post("/v1/sweeps", json=body | {"max_cells": 2}).status_code == 400
    shown = ended(client, started(client, body | {"max_cells": 3})["sweep_id"])
    assert [(each["path"], each["step"]) for each in shown["axes"]["checkpoints"]] == [
        ("job/a_000000250.safetensors", 250),
        ("job/a_000000500.safetensors", 500),
        ("job/a.safetensors", None),
    ]


def test_checkpoints_of_a_training_job(client, config, make_body):
    add_checkpoints(config, "job_000000250.safetensors", "job_000000500.safetensors", "job_000000750.safetensors")
    values = [{"training_job": "job", "from_step": 300, "to_step": 750}]
    answer = started(client, sweep_body(make_body, checkpoints=values))
    shown = ended(client, answer["sweep_id"])
    assert [each["step"] for each in shown["axes"]["checkpoints"]] == [500, 750]


def test_checkpoint_that_is_still_being_written_is_left_out_of_a_range(client, config, make_body):
    _, newest = add_checkpoints(config, "job_000000250.safetensors", "job_000000500.safetensors")
    whole = Path(config.lora_root, newest).read_bytes()
    Path(config.lora_root, newest).write_bytes(whole[:-10])
    answer = started(client, sweep_body(make_body, checkpoints=[{"training_job": "job", "from_step": 1}]))
    assert answer["cells"] == 1
    assert answer["notes"][0] == f"{newest} is still being written, so it was left out"
    # Named by itself, it refuses the sweep.
    answer = client.post("/v1/sweeps", json=sweep_body(make_body, checkpoints=[newest]))
    assert answer.json()["detail"]["error"]["code"] == "LORA_INVALID_FILE"


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("job/*.safetensors", "job/a.safetensors", True),
        ("job/*.safetensors", "job/more/a.safetensors", False),
        ("**/a?.safetensors", "job/more/ab.safetensors", True),
        ("**/a?.safetensors", "ab.safetensors", True),
        ("job/[!b-d]*", "job/a.safetensors", True),
        ("job/[b-d]*", "job/a.safetensors", False),
        ("job/a.safetensor?", "job/aXsafetensors", False),
        ("job/[a", "job/a", False),
        ("job/[a", "job/[a", True),
    ],
)
def test_patterns_of_paths(pattern, path, fits):
    assert compiled(pattern).fullmatch(path) == fits


def test_no_pattern_takes_long():
    """With backtracking, this one would take hours."""
    assert not compiled("**?" * 10 + "!").fullmatch("my_lora_job/" + "my_lora_" * 25)


@pytest.mark.parametrize("pattern", ["job/[z-a]*", "?" * 21, "*a" * 21])
def test_pattern_that_is_none_is_refused(client, make_body, pattern):
    answer = client.post("/v1/sweeps", json=sweep_body(make_body, checkpoints=[pattern]))
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "INVALID_PARAMETER")


def test_too_many_patterns_are_refused(client, make_body):
    answer = client.post("/v1/sweeps", json=sweep_body(make_body, checkpoints=["job/*"] * 51))
    assert answer.json()["detail"]["error"]["details"] == {"parameter": "checkpoints", "max": 50}


def test_one_control_image_by_two_names_is_one_value(client, application, make_body):
    one, other = (as_base64(as_png(noise_image(32, 32, seed))) for seed in (1, 2))
    axes = {"control_images": [one, f"data:image/png;base64,{one}"], "seeds": [1]}
    sweep_id = started(client, sweep_body(make_body, **axes))["sweep_id"]
    shown = ended(client, sweep_id)
    assert (shown["cells"], len(shown["axes"]["control_images"])) == (1, 1)
    # One that it has, and one that is new.
    answer = client.post(f"/v1/sweeps/{sweep_id}/extend", json={"axes": {"control_images": [one, other]}}).json()
    assert answer["cells"] == 2
    shown = ended(client, sweep_id)
    assert shown["counts"]["succeeded"] == len(shown["axes"]["control_images"]) == len(application.editors.tasks) == 2


def test_urls_that_would_be_stored_alike_are_refused(client, make_body):
    urls = ["https://x.example/a.safetensors?key=1", "https://x.example/a.safetensors?key=2"]
    answer = client.post("/v1/sweeps", json=sweep_body(make_body, checkpoints=urls))
    assert answer.json()["detail"]["error"]["details"] == {"parameter": "checkpoints"}


def test_multipliers_are_added_to_a_sweep_whose_base_has_no_lora(client, config, make_body):
    [path] = add_checkpoints(config, "a_000000250.safetensors")
    body = sweep_body(make_body, checkpoints=[path])
    body["base"]["loras"] = []
    sweep_id = started(client, body)["sweep_id"]
    assert client.post(f"/v1/sweeps/{sweep_id}/extend", json={"axes": {"multipliers": [0.5]}}).json()["cells"] == 2
    ended(client, sweep_id)


def test_cancelled_sweep_is_resumed_before_it_is_extended(client, make_body):
    sweep_id = started(client, sweep_body(make_body, seeds=[1]))["sweep_id"]
    client.post(f"/v1/sweeps/{sweep_id}/cancel")
    url, extension = f"/v1/sweeps/{sweep_id}/extend", {"axes": {"seeds": [2]}}
    answer = client.post(url, json=extension)
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (409, "SWEEP_CANCELED")
    client.post(f"/v1/sweeps/{sweep_id}/resume")
    assert client.post(url, json=extension).json()["cells"] == 2
    assert ended(client, sweep_id)["status"] == "succeeded"


def test_purge_deletes_what_earlier_attempts_were_made_from(client, application, make_body):
    application.editors.errors.append(EditError("it went wrong"))
    sweep_id = started(client, sweep_body(make_body, seeds=[1]))["sweep_id"]
    [first] = ended(client, sweep_id)["grid"]
    url = f"/v1/requests/{first['request_id']}/control-images/0"
    assert client.get(url).status_code == 200
    client.post(f"/v1/sweeps/{sweep_id}/resume")
    ended(client, sweep_id)
    client.delete(f"/v1/sweeps/{sweep_id}", params={"purge": True})
    assert client.get(url).status_code == 404


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"checkpoints": ["no/such.safetensors"]}, "LORA_NOT_FOUND"),
        ({"checkpoints": ["no/*.safetensors"]}, "LORA_NOT_FOUND"),
        ({"checkpoints": [{"training_job": "job", "from_step": 1, "to_step": 2}]}, "LORA_NOT_FOUND"),
        ({"checkpoints": ["../x.safetensors"]}, "LORA_PATH_FORBIDDEN"),
        ({"checkpoints": [None]}, "LORA_FILE_REQUIRED"),
        ({"qualities": ["exact", "fast"]}, "QUALITY_UNAVAILABLE"),
        ({"control_images": ["sha256:" + "0" * 64]}, "CONTROL_IMAGE_INVALID"),
        ({"prompts": ["x" * 20_001]}, "INVALID_PARAMETER"),
    ],
)
def test_whatever_a_cell_would_be_refused_for_refuses_the_sweep(client, application, make_body, changes, code):
    answer = client.post("/v1/sweeps", json=sweep_body(make_body, **changes))
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, code)
    assert not application.editors.tasks


def test_checkpoint_that_does_not_fit_refuses_the_sweep(client, config, application, make_body):
    bad = Path(config.lora_root) / "job" / "bad.safetensors"
    bad.write_bytes(safetensors_bytes({"transformer.blocks.0.x.lora_A.weight": (2, 16)}))
    answer = client.post("/v1/sweeps", json=sweep_body(make_body, checkpoints=[LORA, "job/bad.safetensors"]))
    assert answer.json()["detail"]["error"]["code"] == "LORA_INCOMPATIBLE"
    assert not application.editors.tasks


def test_base_has_one_prompt(client, make_body):
    body = sweep_body(make_body, seeds=[1])
    body["base"]["prompts"] *= 2
    assert client.post("/v1/sweeps", json=body).json()["detail"]["error"]["code"] == "INVALID_PARAMETER"


def test_unknown_axis_is_refused(client, make_body):
    assert client.post("/v1/sweeps", json=sweep_body(make_body, steps=[1, 2])).status_code == 422


def test_drawn_seed_is_the_same_for_all_cells(client, application, make_body):
    ended(client, started(client, sweep_body(make_body, seeds=[-1], multipliers=[0.5, 1.0]))["sweep_id"])
    assert len({task.plan.seed for task in application.editors.tasks}) == 1


def test_same_idempotency_key_and_body_are_the_same_sweep(client, application, make_body):
    headers = {"Idempotency-Key": "nightly"}
    body = sweep_body(make_body, seeds=[1, 2])
    first = started(client, body, headers=headers)
    ended(client, first["sweep_id"])
    again = started(client, body, headers=headers)
    assert (again["sweep_id"], again["status"], again["cells"]) == (first["sweep_id"], "succeeded", 2)
    other = client.post("/v1/sweeps", json=sweep_body(make_body, seeds=[3]), headers=headers)
    assert (other.status_code, other.json()["detail"]["error"]["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert len(application.editors.tasks) == 2


def test_failed_cell_does_not_stop_the_others_and_can_be_made_again(client, application, make_body):
    application.editors.errors.append(EditError("it went wrong"))
    sweep_id = started(client, sweep_body(make_body, seeds=[1, 2, 3]))["sweep_id"]
    shown = ended(client, sweep_id)
    assert shown["status"] == "failed"
    assert sorted(statuses(shown)) == ["failed", "succeeded", "succeeded"]
    [failed] = [cell for cell in shown["grid"] if cell["status"] == "failed"]
    assert "it went wrong" in failed["error"]
    made = [cell["request_id"] for cell in shown["grid"] if cell["status"] == "succeeded"]
    assert client.post(f"/v1/sweeps/{sweep_id}/resume").status_code == 200
    shown = ended(client, sweep_id)
    assert shown["status"] == "succeeded"
    assert {cell["request_id"] for cell in shown["grid"]} >= set(made)
    assert len(application.editors.tasks) == 4


def test_cancel_and_resume(client, application, make_body):
    application.editors.gate.clear()
    sweep_id = started(client, sweep_body(make_body, seeds=[1, 2, 3, 4]))["sweep_id"]
    wait_until(lambda: "in_progress" in statuses(sweep(client, sweep_id)))
    answer = client.post(f"/v1/sweeps/{sweep_id}/cancel").json()
    assert (answer["status"], answer["counts"]["canceled"]) == ("canceled", 4)
    application.editors.gate.set()
    client.post(f"/v1/sweeps/{sweep_id}/resume")
    shown = ended(client, sweep_id)
    assert shown["status"] == "succeeded"
    made = [task.request_id for task in application.editors.tasks]
    assert [made.count(cell["request_id"]) for cell in shown["grid"]] == [1, 1, 1, 1]


def test_cancelled_cell_is_one_cell(client, application, make_body):
    application.editors.gate.clear()
    sweep_id = started(client, sweep_body(make_body, seeds=[1, 2, 3]))["sweep_id"]
    wait_until(lambda: sweep(client, sweep_id)["grid"][2]["request_id"])
    client.delete(f"/v1/requests/{sweep(client, sweep_id)['grid'][2]['request_id']}")
    application.editors.gate.set()
    shown = ended(client, sweep_id)
    assert (shown["status"], statuses(shown)) == ("canceled", ["succeeded", "succeeded", "canceled"])


def test_extend_makes_only_what_is_new(client, config, application, make_body):
    paths = add_checkpoints(config, "a_000000250.safetensors", "a_000000500.safetensors")
    sweep_id = started(client, sweep_body(make_body, checkpoints=paths[:1], seeds=[1, 2]))["sweep_id"]
    first = ended(client, sweep_id)
    extension = {"axes": {"checkpoints": paths, "multipliers": [1.0, 0.5]}}
    answer = client.post(f"/v1/sweeps/{sweep_id}/extend", json=extension | {"dry_run": True}).json()
    assert (answer["status"], answer["cells"], answer["sweep_id"]) == ("dry_run", 8, sweep_id)
    assert sweep(client, sweep_id)["cells"] == 2
    answer = client.post(f"/v1/sweeps/{sweep_id}/extend", json=extension).json()
    assert (answer["status"], answer["cells"]) == ("queued", 8)
    shown = ended(client, sweep_id)
    assert shown["grid"][:2] == first["grid"]
    assert len(application.editors.tasks) == 8
    assert len({tuple(cell["place"].values()) for cell in shown["grid"]}) == 8
    # Nothing is left to add.
    client.post(f"/v1/sweeps/{sweep_id}/extend", json=extension)
    assert sweep(client, sweep_id)["cells"] == 8


def test_extended_although_an_earlier_checkpoint_was_deleted(client, config, make_body):
    """The trainer keeps only the last few."""
    paths = add_checkpoints(config, "a_000000250.safetensors", "a_000000500.safetensors")
    sweep_id = started(client, sweep_body(make_body, checkpoints=paths[:1]))["sweep_id"]
    ended(client, sweep_id)
    Path(config.lora_root, paths[0]).unlink()
    assert client.post(f"/v1/sweeps/{sweep_id}/extend", json={"axes": {"checkpoints": paths[1:]}}).status_code == 200
    assert ended(client, sweep_id)["counts"]["succeeded"] == 2
    answer = client.post(f"/v1/sweeps/{sweep_id}/extend", json={"axes": {"seeds": [9]}})
    assert answer.json()["detail"]["error"]["code"] == "LORA_NOT_FOUND"


def test_purge_deletes_images_for_good(client, config, make_body):
    sweep_id = started(client, sweep_body(make_body, seeds=[1, 2]))["sweep_id"]
    url = ended(client, sweep_id)["grid"][0]["url"]
    assert client.get(url).status_code == 200
    assert client.delete(f"/v1/sweeps/{sweep_id}", params={"purge": True}).json()["purged"]
    assert client.get(url).status_code == 404
    answer = client.post(f"/v1/sweeps/{sweep_id}/resume")
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (409, "SWEEP_PURGED")


def test_events_tell_each_cell_and_the_end_and_resume(client, make_body):
    sweep_id = started(client, sweep_body(make_body, seeds=[1, 2]))["sweep_id"]
    text = client.get(f"/v1/sweeps/{sweep_id}/events").text
    seen = list(events(text))
    assert {event["data"]["cell"] for event in seen if event["event"] == "cell"} == {0, 1}
    assert (seen[-1]["event"], seen[-1]["data"]["status"]) == ("succeeded", "succeeded")
    assert client.get(f"/v1/sweeps/{sweep_id}/events", headers={"Last-Event-ID": seen[-1]["id"]}).status_code == 204
    resumed = list(events(client.get(f"/v1/sweeps/{sweep_id}/events", headers={"Last-Event-ID": seen[0]["id"]}).text))
    assert resumed[-1] == seen[-1]


def test_sweeps_are_listed_and_seen_by_their_tenant_only(config, make_body, tmp_path):
    keys = {name: new_key() for name in ("red", "blue")}
    (tmp_path / "keys.yaml").write_text(
        "tenants: {" + ", ".join(f"{name}: [{sha}]" for name, (_, sha) in keys.items()) + "}"
    )
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(tmp_path / "keys.yaml"))}))
    with TestClient(application.app) as client:
        red, blue = ({"X-API-Key": keys[name][0]} for name in ("red", "blue"))
        ids = [started(client, sweep_body(make_body, seeds=[n]), headers=red)["sweep_id"] for n in (1, 2)]
        wait_until(lambda: client.get(f"/v1/sweeps/{ids[1]}", headers=red).json()["status"] == "succeeded", 30)
        page = client.get("/v1/sweeps", params={"limit": 1}, headers=red).json()
        rest = client.get("/v1/sweeps", params={"cursor": page["next_cursor"]}, headers=red).json()
        assert [each["sweep_id"] for each in page["sweeps"] + rest["sweeps"]] == ids[::-1]
        assert client.get("/v1/sweeps", headers=blue).json()["sweeps"] == []
        gets = [("GET", path) for path in ("", "/events", "/sheet", "/cells.csv", "/archive")]
        for method, path in (*gets, ("POST", "/cancel"), ("POST", "/resume"), ("POST", "/extend"), ("DELETE", "")):
            body = {"axes": {"seeds": [9]}} if path == "/extend" else None
            answer = client.request(method, f"/v1/sweeps/{ids[0]}{path}", headers=blue, json=body)
            assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "SWEEP_NOT_FOUND")
        assert client.get(f"/v1/requests/{sweep_request(client, ids[0], red)}/status", headers=blue).status_code == 404


def sweep_request(client, sweep_id, headers):
    return client.get(f"/v1/sweeps/{sweep_id}", headers=headers).json()["grid"][0]["request_id"]


def test_without_keys_sweeps_are_not_listed(client):
    assert client.get("/v1/sweeps").status_code == 403


def test_sweep_goes_on_after_a_restart_and_makes_nothing_twice(config, make_body):
    first, second = Application(config), Application(config)
    first.editors.gate.clear()
    with TestClient(first.app) as client:
        sweep_id = started(client, sweep_body(make_body, seeds=list(range(6))))["sweep_id"]
        wait_until(lambda: first.editors.tasks, 30)
        before = {cell["cell"]: cell["request_id"] for cell in sweep(client, sweep_id)["grid"] if cell["request_id"]}
    with TestClient(second.app) as client:
        shown = ended(client, sweep_id)
    assert (shown["status"], shown["counts"]["succeeded"]) == ("succeeded", 6)
    assert {number: shown["grid"][number]["request_id"] for number in before} == before
    # No edit of the first process was finished.
    assert len({task.request_id for task in second.editors.tasks}) == len(second.editors.tasks) == 6


def test_other_requests_find_room_next_to_a_sweep(config, make_body):
    jobs = config.jobs.model_copy(update={"max_queued_per_tenant": 6})
    application = Application(config.model_copy(update={"jobs": jobs}))
    application.running = {model.id: 0 for model in config.models}
    with TestClient(application.app) as client:
        sweep_id = started(client, sweep_body(make_body, seeds=list(range(10))))["sweep_id"]
        wait_until(lambda: sum(bool(cell["request_id"]) for cell in sweep(client, sweep_id)["grid"]) == 3, 30)
        assert client.post("/v1/inference", json=make_body()).status_code == 200
        application.running = {model.id: 1 for model in config.models}
        assert ended(client, sweep_id)["status"] == "succeeded"
    assert len(application.editors.tasks) == 11


def test_requests_of_a_sweep_are_bulk(client, application, make_body, config):
    application.editors.gate.clear()
    sweep_id = started(client, sweep_body(make_body, seeds=list(range(5))))["sweep_id"]
    wait_until(lambda: sweep(client, sweep_id)["grid"][4]["request_id"], 30)
    urgent = client.post("/v1/inference", json=make_body()).json()["request_id"]
    application.editors.gate.set()
    ended(client, sweep_id)
    order = [task.request_id for task in application.editors.tasks]
    # It overtakes all but those that editors had already.
    assert order.index(urgent) <= 2


@pytest.mark.parametrize("url", ["http://[", "https://[x]/a.safetensors", "http://a:b@[/"])
def test_checkpoint_whose_url_cannot_be_read_is_refused(client, make_body, url):
    sweep_id = started(client, sweep_body(make_body, seeds=[1]))["sweep_id"]
    for path, body in (
        ("/v1/sweeps", sweep_body(make_body, checkpoints=[url])),
        (f"/v1/sweeps/{sweep_id}/extend", {"axes": {"checkpoints": [url]}}),
    ):
        answer = client.post(path, json=body)
        assert (answer.status_code, code_of(answer.json())) == (400, "LORA_DOWNLOAD_FAILED"), answer.text
    ended(client, sweep_id)
