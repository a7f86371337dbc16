"""Calibrations over HTTP: tiers are measured through the queue, and requests carry what was measured."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import PIL.Image
import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.config import AppConfig, AuthConfig
from serve_app.config.jobs import DAY_S
from serve_app.errors import QueueFull, StoreUnavailable
from serve_app.images.comparison import psnr
from serve_app.intake.calibrations.runs import DUTY, INCOMPLETE, REFUSED, requests_of
from serve_app.intake.keys import new_key
from serve_app.jobs.calibrations import Calibration, CalibrationKey
from serve_app.storage import artifact_keys
from serve_app.tasks import EditDone, EditEvent, EditTask, Loss, LossRange, Status, StepDone
from tests.conftest import as_png, noise_image
from tests.training_folder import trainer_config, write_checkpoints, write_config
from tests.unit.conftest import LORA, Application, InstantEditors, safetensors_bytes
from tests.unit.losses import current_since
from tests.unit.test_explain import explained
from tests.unit.test_http_contract import finished

TIERS: dict[str, Any] = {"balanced": {"feature_cache": 0.1}, "fast": {"steps": 4}}
PROMPT = {"prompt": "a cat", "width": 64, "height": 64, "sample_steps": 8}
EXACT = "exact with 8 steps at guidance 4"
SECONDS = {"exact": 3.0, "balanced": 2.0, "turbo": 1.5, "fast": 1.0}


def image_of(task: EditTask) -> PIL.Image.Image:
    """Another image for each quality and case, far from exact by one level in `balanced` and more in `fast`."""
    levels = {"exact": 0, "balanced": 1, "turbo": 4, "fast": 8}[task.plan.quality]
    image = noise_image(64, 64, seed=task.index)
    return image.point(lambda value: value + levels if value < 128 else value - levels)


class DrawingEditors(InstantEditors):
    """Editors whose images differ by quality, and take other times."""

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        self.tasks.append(task)
        plan = task.plan
        yield StepDone(0, plan.steps)
        if self.errors:
            raise self.errors.pop(0)
        data = as_png(image_of(task))
        digest = hashlib.sha256(data).hexdigest()
        key = artifact_keys.image(digest, ".png")
        self.artifacts.put(key, data)
        timings = {"generate": SECONDS[plan.quality]}
        yield EditDone(key, self.artifacts.url(key), "png", 64, 64, plan.seed, len(data), digest, timings, {})


Served = Callable[..., Any]


@pytest.fixture(autouse=True)
def only_when_asked(monkeypatch) -> None:
    """The service's own loop measures nothing: tests call `measure_ended`."""
    monkeypatch.setattr("serve_app.intake.calibrations.runs.PERIOD_S", 3600.0)


@pytest.fixture
def served(config: AppConfig) -> Served:
    """A running application whose model has tiers."""

    @contextmanager
    def serve(tiers: Any = TIERS, **changes: Any) -> Iterator[tuple[Application, TestClient]]:
        model = config.models[0].model_dump() | {"tiers": tiers}
        changed = AppConfig.model_validate(config.model_dump() | {"models": [model]} | changes)
        application = Application(changed, editors=DrawingEditors)
        with TestClient(application.app) as client:
            yield application, client

    return serve


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "qwen_image_edit", "prompts": [PROMPT | {"ctrl_img": control_image()}] * 3} | fields


def control_image() -> str:
    return base64.b64encode(as_png(noise_image(64, 64))).decode()


def measured(client: TestClient, application: Application, sent: dict[str, Any]) -> dict[str, Any]:
    """The run after its end."""
    answer = client.post("/v1/calibrations", json=sent)
    assert answer.status_code == 202, answer.text
    for request_id in answer.json()["requests"]:
        client.portal.call(ended, application, request_id)
    client.portal.call(application.service.calibration_runs.measure_ended)
    runs = client.get("/v1/calibrations").json()["runs"]
    return next(run for run in runs if run["id"] == answer.json()["id"])


def refused(client: TestClient, path: str, sent: dict[str, Any]) -> dict[str, Any]:
    """The error with which a body is refused."""
    answer = client.post(path, json=sent)
    assert answer.status_code == 400, answer.text
    return answer.json()["detail"]["error"]


async def ended(application: Application, request_id: str) -> None:
    async with asyncio.timeout(30):
        while not (await application.service.resources.store.requests.get(request_id)).status.ended:
            await asyncio.sleep(0.01)


def test_tiers_are_measured_through_the_queue(served):
    with served() as (application, client):
        run = measured(client, application, body(loras=[[{"path": LORA}]]))
        listed = client.get("/v1/calibrations").json()["calibrations"]
    assert (run["tiers"], run["problem"], run["ended_at"] is None) == (["balanced", "fast"], None, False)
    # Exact and two tiers, without and with the LoRA.
    assert len(run["requests"]) == 6
    assert {task.plan.quality for task in application.editors.tasks} == {"exact", "balanced", "fast"}
    found = {(each["tier"], tuple(lora["path"] for lora in each["loras"])): each for each in listed}
    assert set(found) == {(tier, loras) for tier in TIERS for loras in ((), (LORA,))}
    for (tier, _), each in found.items():
        exact, other = (noise_image(64, 64), image_of(EditTask("", 0, plan_of(application, tier))))
        assert each["loss"]["psnr_db"]["worst"] == pytest.approx(psnr(exact, other), abs=0.5)
        assert (each["loss"]["cases"], each["loss"]["latents"]) == (3, None)
        assert (each["loss"]["exact_s"], each["loss"]["tier_s"]) == (3.0, SECONDS[tier])
        assert each["speedup"] == pytest.approx(3.0 / SECONDS[tier])
        assert each["is_current"]
    assert found[("fast", (LORA,))]["loss"]["on"] == f"3 prompts of the request, with {LORA} at 1, {EXACT}"


def plan_of(application: Application, tier: str) -> Any:
    return next(task.plan for task in application.editors.tasks if task.plan.quality == tier)


def test_a_request_has_the_tier_once_it_was_measured_for_its_loras(served, make_body):
    with served() as (application, client):
        asked = make_body(quality="balanced", profile=None)
        assert refused(client, "/v1/explain", asked)["code"] == "QUALITY_UNAVAILABLE"
        # Only the model without LoRAs.
        measured(client, application, body())
        assert refused(client, "/v1/explain", asked)["code"] == "QUALITY_UNAVAILABLE"
        measured(client, application, body(loras=[[{"path": LORA}]], base=False, tiers=["balanced"]))
        [record] = explained(client, asked)["effective"]
        result = finished(client, asked)
    assert result["status"] == "succeeded"
    assert record["quality"] == "balanced"
    assert record["loss"]["cases"] == 3
    assert record["loss"]["on"] == f"3 prompts of the request, with {LORA} at 1, {EXACT}"
    assert record["loss"]["psnr_db"]["worst"] > 40


def test_a_note_says_what_of_a_request_was_not_measured(served, make_body):
    with served() as (application, client):
        measured(client, application, body(loras=[[{"path": LORA}]]))
        same = make_body(quality="balanced", sample_steps=8)
        other = make_body(quality="balanced", sample_steps=9, width=96)
        other["loras"] = [{"path": LORA, "network_multiplier": 0.5}]
        steps_of_tier = make_body(quality="fast", sample_steps=None)
        notes = [explained(client, each)["notes"] for each in (same, other, steps_of_tier)]
    about = [[note for note in some if "its loss was measured" in note] for some in notes]
    assert about[0] == []
    whats = ("the size 64x64", f"network_multiplier 1 of {LORA!r}")
    beginning, end = "quality balanced: its loss was measured with ", "; other values may lose more"
    assert about[1] == [against("balanced", "sample_steps 8", 9), *(beginning + what + end for what in whats)]
    # The tier fixes the steps, so its exact images are those of the model: they were measured with others.
    assert about[2] == [against("fast", "sample_steps 8", 25)]


def against(tier: str, measured: str, own: float) -> str:
    return (
        f"quality {tier}: its loss was measured against exact images with {measured}; those of this request would have "
        f"{own:g}, so it may lose more"
    )


def test_a_note_says_that_exact_images_had_another_guidance(served, make_body):
    prompts = [PROMPT | {"ctrl_img": control_image(), "guidance_scale": scale} for scale in (1, 2.5)]
    tiers = {"balanced": {"feature_cache": 0.1}, "turbo": {"steps": 8, "guidance_scale": 1}}
    with served(tiers) as (application, client):
        measured(client, application, body(prompts=prompts, loras=[[{"path": LORA}]]))
        bodies = [make_body(quality="balanced", sample_steps=8, guidance_scale=scale) for scale in (2.5, 3)]
        bodies.append(make_body(quality="turbo", sample_steps=None))
        answers = [explained(client, each) for each in bodies]
        listed = client.get("/v1/calibrations").json()["calibrations"]
    about = [[note for note in answer["notes"] if "against exact images" in note] for answer in answers]
    assert about == [
        [],
        [against("balanced", "guidance_scale 1 or 2.5", 3)],
        [against("turbo", "sample_steps 8", 25), against("turbo", "guidance_scale 1 or 2.5", 4)],
    ]
    assert answers[0]["effective"][0]["loss"]["on"].endswith("exact with 8 steps at guidance 1 or 2.5")
    assert {tuple(each["guidance_scales"]) for each in listed} == {(1.0, 2.5)}


def test_a_note_says_that_the_guidance_of_an_old_measurement_is_unknown(served, make_body):
    with served() as (application, client):
        measured(client, application, body(loras=[[{"path": LORA}]]))
        store = application.service.resources.store.calibrations

        async def without_guidance() -> None:
            for each in await store.all():
                del each.details["guidance_scales"]
                await store.record(each)

        client.portal.call(without_guidance)
        notes = explained(client, make_body(quality="balanced", sample_steps=8))["notes"]
        listed = client.get("/v1/calibrations").json()["calibrations"]
    what = "it is unknown which guidance_scale the exact images had when its loss was measured"
    assert f"quality balanced: {what}" in notes
    assert {tuple(each["guidance_scales"]) for each in listed} == {()}


def test_a_tier_with_other_settings_is_not_measured_any_more(served, make_body):
    with served() as (application, client):
        measured(client, application, body(loras=[[{"path": LORA}]]))
    with served(tiers={"balanced": {"feature_cache": 0.2}}) as (_, client):
        assert refused(client, "/v1/explain", make_body(quality="balanced"))["code"] == "QUALITY_UNAVAILABLE"
        listed = client.get("/v1/calibrations").json()["calibrations"]
    assert {each["is_current"] for each in listed} == {False}


def test_an_uncalibrated_tier_that_is_allowed_says_that_it_is_not_measured(served, make_body):
    with served(tiers={"balanced": {"feature_cache": 0.1, "uncalibrated": "allow"}}) as (_, client):
        [record] = explained(client, make_body(quality="balanced"))["effective"]
    assert (record["quality"], record["loss"]) == ("balanced", None)
    assert "not measured" in record["why"]["quality"]


def test_images_that_failed_are_named_in_the_problem(served):
    with served() as (application, client):
        application.editors.errors.append(ValueError("broken"))
        run = measured(client, application, body(prompts=[PROMPT | {"ctrl_img": control_image()}], tiers=["balanced"]))
        listed = client.get("/v1/calibrations").json()["calibrations"]
    assert f"balanced, 1 prompt of the request, without LoRAs, {EXACT}: the request" in run["problem"]
    assert listed == []


def test_the_samples_of_a_training_job_are_cases(served, config):
    folder = Path(config.lora_root) / "my_job"
    sample = {"prompt": "a dog", "ctrl_img": "/home/me/cat.png", "width": 64, "height": 64, "sample_steps": 2}
    write_config(folder, trainer_config(sample={"samples": [sample, sample | {"prompt": "a bird"}]}))
    write_checkpoints(folder, safetensors_bytes())
    (folder / "cat.png").write_bytes(as_png(noise_image(64, 64)))
    with served() as (application, client):
        sent = {"model": "qwen_image_edit", "training_job": "my_job", "tiers": ["balanced"]}
        run = measured(client, application, sent)
        [found] = client.get("/v1/calibrations").json()["calibrations"]
    assert run["problem"] is None
    assert found["loss"]["on"] == "2 samples of a training job, without LoRAs, exact with 2 steps at guidance 7"
    assert found["set"] == "training job my_job"
    assert {task.plan.prompt for task in application.editors.tasks} == {"a dog", "a bird"}


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        ({"tiers": ["turbo"]}, "INVALID_PARAMETER", "has no tier 'turbo'"),
        ({"model": "other"}, "MODEL_NOT_FOUND", "it has: qwen_image_edit"),
        ({"loras": [[{"path": "no.safetensors"}]]}, "LORA_NOT_FOUND", "no.safetensors"),
        ({"prompts": [PROMPT]}, "CONTROL_IMAGE_REQUIRED", "control image"),
    ],
)
def test_what_cannot_be_measured_is_refused(served, sent, code, message):
    with served() as (application, client):
        found = refused(client, "/v1/calibrations", body(**sent))
        assert found["code"] == code
        assert message in found["message"]
        assert client.get("/v1/calibrations").json()["runs"] == []
        # What was sent for the base model is cancelled.
        unfinished = client.portal.call(application.service.resources.store.calibrations.unfinished)
    assert unfinished == []


def test_requests_before_a_refused_one_are_cancelled(served):
    with served() as (application, client):
        # Its images wait.
        application.running["qwen_image_edit"] = 0
        sets = [[{"path": LORA}], [{"path": "no.safetensors"}]]
        assert client.post("/v1/calibrations", json=body(loras=sets)).status_code == 400
        counts = client.portal.call(application.service.resources.store.queue.counts, None)
    assert counts == {}
    assert application.editors.tasks == []


@pytest.mark.parametrize("method", ["start", "extend", "submitted"])
def test_requests_of_a_run_that_cannot_be_kept_are_cancelled(served, monkeypatch, method):
    async def fails(*_: Any) -> None:
        raise StoreUnavailable("the job database cannot be reached")

    with served() as (application, client):
        application.running["qwen_image_edit"] = 0
        calibrations = application.service.resources.store.calibrations
        monkeypatch.setattr(calibrations, method, fails)
        assert client.post("/v1/calibrations", json=body()).status_code == 503
        assert client.portal.call(application.service.resources.store.queue.counts, None) == {}
        assert client.portal.call(calibrations.unfinished) == []


def test_a_request_that_cannot_be_cancelled_keeps_no_other_in_the_queue(served, monkeypatch):
    with served() as (application, client):
        application.running["qwen_image_edit"] = 0
        store, submissions = application.service.resources.store, application.service.submissions
        cancel, tried = submissions.cancel, []

        async def fails_first(record: Any, *, purge: bool) -> None:
            tried.append(record.id)
            if len(tried) == 1:
                raise StoreUnavailable("the job database cannot be reached")
            await cancel(record, purge=purge)

        monkeypatch.setattr(submissions, "cancel", fails_first)
        sets = [[{"path": LORA}], [{"path": "no.safetensors"}]]
        assert client.post("/v1/calibrations", json=body(loras=sets)).status_code == 400
        # Exact and two tiers, without and with the first LoRA.
        assert len(tried) == 6
        canceled = [client.portal.call(store.requests.get, name).status is Status.CANCELED for name in tried]
        assert canceled == [False] + [True] * 5
        # The run stays, so that something measures what is left.
        assert len(client.portal.call(store.calibrations.unfinished)) == 1


def test_what_a_process_submitted_before_it_died_is_measured(served, monkeypatch):
    with served() as (application, client):
        calibrations = application.service.resources.store.calibrations
        runs, submissions = application.service.calibration_runs, application.service.submissions
        submit, kept = submissions.submit, []

        async def dies_at_fourth(*arguments: Any, **named: Any) -> Any:
            if len(kept) == 3:
                raise StoreUnavailable("the process dies")
            kept.append(1)
            return await submit(*arguments, **named)

        async def dead(*_: Any) -> None:
            """A process that has died cleans nothing up."""

        monkeypatch.setattr(submissions, "submit", dies_at_fourth)
        monkeypatch.setattr(runs, "_undo", dead)
        assert client.post("/v1/calibrations", json=body(loras=[[{"path": LORA}]])).status_code == 503
        [run] = client.portal.call(calibrations.unfinished)
        for request_id in requests_of(run):
            client.portal.call(ended, application, request_id)
        client.portal.call(runs.measure_ended)
        assert client.portal.call(calibrations.under_way, run.id) == run
        # Its time is over.
        client.portal.call(calibrations.extend, run.id, run.comparisons, -1.0)
        client.portal.call(runs.measure_ended)
        answer = client.get("/v1/calibrations").json()
    assert {each["tier"] for each in answer["calibrations"]} == {"balanced", "fast"}
    assert answer["runs"][0]["problem"] == INCOMPLETE


def test_a_run_whose_requests_are_still_submitted_is_not_measured(served, monkeypatch):
    with served() as (application, client):
        submissions, runs = application.service.submissions, application.service.calibration_runs
        submit = submissions.submit

        async def measures_between(*arguments: Any, **named: Any) -> Any:
            record, is_new = await submit(*arguments, **named)
            await ended(application, record.id)
            await runs.measure_ended()
            return record, is_new

        monkeypatch.setattr(submissions, "submit", measures_between)
        run = measured(client, application, body())
    assert run["problem"] is None
    assert run["tiers"] == ["balanced", "fast"]


def test_without_the_duty_nobody_reads_requests_or_measures(served, monkeypatch):
    with served() as (application, client):
        store, runs = application.service.resources.store, application.service.calibration_runs
        client.portal.call(store.take_duty, DUTY, "another ingress", 60.0)
        answer = client.post("/v1/calibrations", json=body(tiers=["balanced"])).json()
        for request_id in answer["requests"]:
            client.portal.call(ended, application, request_id)
        get, unfinished, asked = store.requests.get, store.retention.unfinished, []
        monkeypatch.setattr(store.requests, "get", lambda name: asked.append(name) or get(name))
        monkeypatch.setattr(store.retention, "unfinished", lambda names: asked.append(names) or unfinished(names))
        client.portal.call(runs.measure_ended)
    assert asked == []


def test_requests_that_have_not_ended_are_not_read(served, monkeypatch):
    with served() as (application, client):
        application.running["qwen_image_edit"] = 0
        store, runs = application.service.resources.store, application.service.calibration_runs
        assert client.post("/v1/calibrations", json=body()).status_code == 202
        get, asked = store.requests.get, []
        monkeypatch.setattr(store.requests, "get", lambda name: asked.append(name) or get(name))
        client.portal.call(runs.measure_ended)
    assert asked == []


def test_who_loses_the_duty_while_it_measures_leaves_the_rest_to_the_other(served, monkeypatch):
    with served() as (application, client):
        runs = application.service.calibration_runs
        answer = client.post("/v1/calibrations", json=body()).json()
        for request_id in answer["requests"]:
            client.portal.call(ended, application, request_id)
        # It has the duty when it begins, and for one comparison.
        having = iter([True, True])

        async def has_duty() -> bool:
            return next(having, False)

        monkeypatch.setattr(runs, "_has_duty", has_duty)
        client.portal.call(runs.measure_ended)
        found = client.get("/v1/calibrations").json()
    assert [each["tier"] for each in found["calibrations"]] == ["balanced"]
    assert found["runs"][0]["ended_at"] is None


def test_times_are_those_of_the_database(served, monkeypatch):
    async def now() -> float:
        return 5000.25

    with served() as (application, client):
        store = application.service.resources.store
        monkeypatch.setattr(store, "now", now)
        run = measured(client, application, body(tiers=["balanced"]))
        answer = client.get("/v1/calibrations").json()
        started = client.post("/v1/calibrations", json=body(tiers=["balanced"])).json()
        stored = {each["id"]: each for each in client.get("/v1/calibrations").json()["runs"]}
    assert answer["calibrations"][0]["measured_at"] == "1970-01-01T01:23:20.250000Z"
    assert run["problem"] is None
    assert started["created_at"] == stored[started["id"]]["created_at"]


def test_a_calibration_that_fails_in_an_unforeseen_way_keeps_no_other_from_its_end(served, monkeypatch):
    with served() as (application, client):
        monkeypatch.setattr("serve_app.intake.calibrations.runs.loss_of", lambda *_: 1 / 0)
        failed = measured(client, application, body(tiers=["balanced"]))
        monkeypatch.undo()
        sound = measured(client, application, body(tiers=["balanced"]))
    assert failed["problem"] == "it could not be measured; the service's log says why"
    assert sound["problem"] is None


def test_a_repeat_under_one_key_is_one_calibration(served):
    def started(client: TestClient, key: str, sent: dict[str, Any]) -> httpx2.Response:
        return client.post("/v1/calibrations", json=sent, headers={"Idempotency-Key": key})

    with served() as (_, client):
        first = started(client, "k", body())
        again = started(client, "k", body())
        assert (first.status_code, again.status_code) == (202, 202)
        assert again.json() == first.json()
        assert len(client.get("/v1/calibrations").json()["runs"]) == 1
        for other in (body(tiers=["fast"]), body(unknown=1), body(prompts=[PROMPT | {"prompt": "a dog"}])):
            refusal = started(client, "k", other)
            assert refusal.status_code == 409
            assert refusal.json()["detail"]["error"]["code"] == "IDEMPOTENCY_CONFLICT"
        assert started(client, "another", body()).json()["id"] != first.json()["id"]


def test_a_key_is_free_again_after_its_calibration_was_refused(served):
    with served() as (_, client):
        headers = {"Idempotency-Key": "k"}
        missing = body(loras=[[{"path": "gone.safetensors"}]])
        assert client.post("/v1/calibrations", json=missing, headers=headers).status_code == 400
        assert client.post("/v1/calibrations", json=body(), headers=headers).status_code == 202


def test_a_repeat_of_a_calibration_that_is_refused_later_was_given_a_run_that_ends(served, monkeypatch):
    headers = {"Idempotency-Key": "k"}
    repeats = []
    with served() as (application, client):
        submissions = application.service.calibration_runs._submissions
        submit = submissions.submit

        async def full_after_the_first(*args: Any, **options: Any) -> Any:
            if repeats:
                raise QueueFull("the queue is full")
            answer = await submit(*args, **options)
            repeats.append(await asyncio.to_thread(client.post, "/v1/calibrations", json=body(), headers=headers))
            return answer

        monkeypatch.setattr(submissions, "submit", full_after_the_first)
        assert client.post("/v1/calibrations", json=body(), headers=headers).status_code == 429
        [repeat] = repeats
        [run] = client.get("/v1/calibrations").json()["runs"]
        assert (repeat.status_code, run["id"], run["problem"]) == (202, repeat.json()["id"], REFUSED)
        monkeypatch.setattr(submissions, "submit", submit)
        again = client.post("/v1/calibrations", json=body(), headers=headers)
        assert (again.status_code, again.json()["id"] == run["id"]) == (202, False)


def test_a_body_needs_one_kind_of_cases(served):
    with served() as (_, client):
        assert client.post("/v1/calibrations", json=body(training_job="my_job")).status_code == 422
        assert client.post("/v1/calibrations", json=body(prompts=[])).status_code == 422
        assert client.post("/v1/calibrations", json=body(base=False)).status_code == 422


def test_only_operators_measure_where_there_are_keys(served, tmp_path):
    (operator, of_operator), (tenant, of_tenant) = new_key(), new_key()
    keys = {"operators": [of_operator], "tenants": {"red": {"keys": [of_tenant], "allow": ["other/**"]}}}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(keys))
    with served(auth=AuthConfig(keys_file=str(tmp_path / "keys.yaml"))) as (application, client):
        client.headers["X-API-Key"] = tenant
        answer = client.post("/v1/calibrations", json=body())
        assert answer.status_code == 403
        assert "operator" in answer.json()["detail"]["error"]["message"]
        client.headers["X-API-Key"] = operator
        measured(client, application, body(loras=[[{"path": LORA}]]))
        assert len(client.get("/v1/calibrations").json()["calibrations"]) == 4
        # The tenant may not use that LoRA.
        client.headers["X-API-Key"] = tenant
        found = client.get("/v1/calibrations").json()
    assert [each["loras"] for each in found["calibrations"]] == [[], []]
    assert found["runs"] == []


def test_tenants_see_no_secrets_no_file_of_the_operator_and_no_training_job(served, tmp_path):
    (operator, of_operator), (tenant, of_tenant) = new_key(), new_key()
    keys = {"operators": [of_operator], "tenants": {"red": {"keys": [of_tenant]}}}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(keys))
    url = "https://user:SECRET@h/x?X-Amz-Signature=SECRET"
    details = {"adapters": [], "checkpoint": url, "tier": {"adapter": url, "steps": 8}, "set": "a training job"}
    details |= {"training_job": "her_job", "sizes": ["64x64"], "steps": [8], "how": "edits-server calibrate"}
    loss = Loss(LossRange(38.0, 44.0), LossRange(0.97, None), 10.0, 6.0, 4, 1.7e9, "4 samples of a training job")
    row = Calibration(CalibrationKey("qwen_image_edit", "fast", "s", "c", "a"), loss, details)
    with served(auth=AuthConfig(keys_file=str(tmp_path / "keys.yaml"))) as (application, client):
        client.portal.call(application.service.resources.store.calibrations.record, row)
        answers = {}
        for key in (operator, tenant):
            answers[key] = client.get("/v1/calibrations", headers={"X-API-Key": key})
    assert not any("SECRET" in answer.text for answer in answers.values())
    [of_operator], [of_tenant] = (answer.json()["calibrations"] for answer in answers.values())
    assert of_operator["settings"] == {"adapter": "https://h/x", "steps": 8}
    assert (of_operator["checkpoint"], of_operator["set"]) == ("https://h/x", "training job her_job")
    assert (of_tenant["settings"], of_tenant["set"]) == ({"steps": 8}, "a training job")
    assert "her_job" not in answers[tenant].text


def test_the_sweeper_deletes_the_losses_of_a_lora_file_that_was_replaced(served, config):
    file = Path(config.lora_root) / LORA
    with served() as (application, client):
        store, sweep = application.service.resources.store, application.service._sweeper.sweep
        measured(client, application, body(loras=[[{"path": LORA}]]))
        client.portal.call(current_since, store, 100 * DAY_S)
        client.portal.call(sweep)
        assert len(client.get("/v1/calibrations").json()["calibrations"]) == 4
        file.write_bytes(safetensors_bytes(metadata={"trained": "anew"}))
        client.portal.call(current_since, store, 100 * DAY_S)
        client.portal.call(sweep)
        left = client.get("/v1/calibrations").json()["calibrations"]
    assert [(each["tier"], each["loras"]) for each in left] == [("fast", []), ("balanced", [])]


def test_a_seed_that_would_be_drawn_is_the_same_in_exact_and_in_the_tier(served):
    prompts = [PROMPT | {"ctrl_img": control_image(), "seed": seed} for seed in (-1, 7, -1)]
    with served() as (application, client):
        measured(client, application, body(prompts=prompts))
    seeds: dict[str, set[tuple[int, int]]] = {}
    for task in application.editors.tasks:
        seeds.setdefault(task.plan.quality, set()).add((task.index, task.plan.seed))
    assert set(seeds) == {"exact", "balanced", "fast"}
    assert all(drawn == {(0, 42), (1, 7), (2, 44)} for drawn in seeds.values())
