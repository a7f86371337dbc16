"""Tiers: who gets one, who is refused and why, and what the plans and records of their images say."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.testclient import TestClient

from serve_app.config import AppConfig, ModelConfig, TierName, read_ingress_settings
from serve_app.errors import LoraDownloadFailed, StorageFailed
from serve_app.intake.admission.parts import NO_PARTS
from serve_app.intake.calibrations.losses import MeasuredLosses
from serve_app.intake.tenants import Caller
from serve_app.jobs.calibrations import Calibration, CalibrationKey
from serve_app.jobs.records import HistoryFilter
from serve_app.schemas.requests import InferenceRequest
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import Loss, LossRange
from serve_app.workers.warm_list import read_warm_list
from tests.unit.conftest import Application, safetensors_bytes
from tests.unit.serving import wait_until
from tests.unit.test_explain import explained
from tests.unit.test_http_contract import finished
from tests.unit.test_presets import refusal

LOSS = Loss(LossRange(38.2, 44.0), LossRange(0.97, None), 10.0, 6.0, 44, 1.7e9, "job/lora.safetensors", latents=0.04)
DISTILLED = "tiers/distilled.safetensors"
TIERS: dict[str, Any] = {
    "balanced": {"feature_cache": 0.1},
    "fast": {"quantization": "fp8", "guidance_gate": 0.5, "guidance_gate_rest": "reuse"},
    "turbo": {"adapter": DISTILLED, "adapter_scale": 0.9, "sampler": "lightning", "steps": 8, "guidance_scale": 1},
}


class KnownLosses:
    """Every tier was measured, but only for the LoRAs of these ids. None: for all."""

    def __init__(self, adapters: set[str] | None = None) -> None:
        self.adapters = adapters
        self.asked: list[tuple[str, str, str, frozenset[str]]] = []

    async def find(
        self, model: ModelConfig, tier: TierName, tier_digest: str, adapters: Collection[str]
    ) -> Calibration | None:
        self.asked.append((model.id, tier, tier_digest, frozenset(adapters)))
        key = CalibrationKey(model.id, tier, tier_digest, "", "")
        return Calibration(key, LOSS) if self.adapters is None or set(adapters) == self.adapters else None


def with_tiers(config: AppConfig, losses: KnownLosses, **model: Any) -> Application:
    """An application with these settings of its model, and a LoRA for the tier turbo."""
    distilled = Path(config.lora_root) / DISTILLED
    distilled.parent.mkdir(exist_ok=True)
    # Another file than the request's, so another id.
    distilled.write_bytes(safetensors_bytes(metadata={"name": "distilled"}))
    settings = config.models[0].model_dump() | model
    changed = AppConfig.model_validate(config.model_dump() | {"models": [settings]})
    return Application(changed, losses=losses)


@pytest.fixture
def served(config: AppConfig) -> Callable[..., Any]:
    """A running application with these losses, and these settings of its model: TIERS if there are none."""

    @contextmanager
    def serve(losses: KnownLosses | None = None, **model: Any) -> Iterator[tuple[Application, TestClient]]:
        application = with_tiers(config, losses or KnownLosses(), **(model or {"tiers": TIERS}))
        with TestClient(application.app) as client:
            yield application, client

    return serve


@pytest.fixture(scope="module")
def tiers(shared_config: AppConfig) -> Iterator[tuple[Application, TestClient]]:
    """One running application with TIERS, all of which were measured, for the tests that need no other."""
    application = with_tiers(shared_config, KnownLosses(), tiers=TIERS)
    with TestClient(application.app) as client:
        yield application, client


def tiers_with(**changes: Any) -> dict[str, Any]:
    return {name: tier | changes for name, tier in TIERS.items()}


def test_tier_decides_plan_and_record(tiers, make_body):
    application, client = tiers
    body = make_body(quality="fast", guidance_scale=4.0)
    [record] = explained(client, body)["effective"]
    result = finished(client, body)
    plan = application.editors.tasks[-1].plan
    assert (plan.quality, plan.quantization, plan.feature_cache) == ("fast", "fp8", None)
    assert (plan.guidance_gate, plan.guidance_gate_rest, plan.loss) == (0.5, "reuse", LOSS)
    assert result["status"] == "succeeded"
    assert (record["quality"], record["quantization"]) == ("fast", "fp8")
    assert record["loss"]["psnr_db"] == {"worst": 38.2, "median": 44.0}
    assert (record["loss"]["measured_at"], record["loss"]["on"]) == ("2023-11-14T22:13:20Z", "job/lora.safetensors")
    assert record["why"]["quality"] == "asked for; its loss was measured on job/lora.safetensors"


def test_editors_keep_the_lora_of_a_tier_in_memory_from_the_start(tiers):
    """Otherwise the first request of the tier would wait for its first copy."""
    application, _ = tiers
    artifacts = Artifacts(application.config.artifacts_url)
    wait_until(lambda: read_warm_list(artifacts, "qwen_image_edit").kept)
    [[use]] = read_warm_list(artifacts, "qwen_image_edit").kept
    assert use.path == DISTILLED


def test_exact_is_the_default_and_has_no_loss(tiers, make_body):
    application, client = tiers
    [record] = explained(client, make_body())["effective"]
    finished(client, make_body())
    plan = application.editors.tasks[-1].plan
    assert (record["quality"], record["loss"], record["feature_cache"]) == ("exact", None, None)
    assert (plan.quality, plan.quantization, plan.guidance_gate, plan.loss) == ("exact", "none", None, None)


def test_distilled_adapter_lies_under_the_requests_own(served, make_body):
    losses = KnownLosses()
    with served(losses) as (application, client):
        body = make_body(quality="turbo", sample_steps=None, neg="blurry")
        answer = explained(client, body)
        finished(client, body)
        plan = application.editors.tasks[-1].plan
        history = application.service.resources.store.requests.history
        filters = [HistoryFilter(lora=path) for path in (DISTILLED, "job/lora.safetensors")]
        found = [client.portal.call(history, each, None, 5) for each in filters]
    assert [(use.path, use.scale, use.of_tier) for use in plan.adapters] == [
        (DISTILLED, 0.9, True),
        ("job/lora.safetensors", 1.0, False),
    ]
    assert (plan.steps, plan.sampler, plan.guidance_scale) == (8, "lightning", 1)
    [record] = answer["effective"]
    assert [(lora["path"], lora["of_tier"]) for lora in record["loras"]] == [
        (DISTILLED, True),
        ("job/lora.safetensors", False),
    ]
    assert record["loras"][0]["receipt"]["modules"] == 1
    assert f"quality turbo applies '{DISTILLED}' under the LoRAs of the request" in answer["notes"]
    # With the tier's guidance of 1 the negative prompt is not read, and the answer says so.
    assert answer["ignored"] == ["neg"]
    # The history finds requests by the LoRAs that they named.
    assert [len(requests) for requests in found] == [0, 1]
    # The loss is looked up for the request's own LoRAs.
    [(model, tier, _, adapters)] = set(losses.asked)
    assert (model, tier, adapters) == ("qwen_image_edit", "turbo", {plan.adapters[1].id})


def test_request_of_a_tier_can_be_posted_again(tiers, make_body):
    _, client = tiers
    for quality in TIERS:
        [record] = explained(client, make_body(quality=quality, sample_steps=None))["effective"]
        again = record["request"]
        assert again["quality"] == quality
        assert [lora["path"] for lora in again["loras"]] == ["job/lora.safetensors"]
        finished(client, make_body(quality=quality, sample_steps=None))
        [repeated] = explained(client, again)["effective"]
    assert {**repeated, "why": None} == {**record, "why": None}


@pytest.mark.parametrize(
    ("fields", "reason", "details"),
    [
        ({"sample_steps": 25}, "it makes images with sample_steps 8, and prompt 0 has 25", {"prompt_index": 0}),
        ({"guidance_scale": 4.0}, "guidance_scale 1.0, and prompt 0 has 4.0", {"parameter": "guidance_scale"}),
        ({"sampler": "flowmatch"}, "sampler lightning, and prompt 0 has flowmatch", {"parameter": "sampler"}),
        ({"profile": "trainer"}, "promises the trainer's own pixels", {"parameter": "profile"}),
        ({"profile": "auto"}, "promises the trainer's own pixels", {"parameter": "profile"}),
    ],
)
def test_request_that_contradicts_its_tier_is_refused(tiers, make_body, fields, reason, details):
    _, client = tiers
    error = refusal(client, make_body(**{"quality": "turbo", "sample_steps": None} | fields))
    assert error["code"] == "QUALITY_UNAVAILABLE"
    assert reason in error["message"]
    assert error["details"].items() >= details.items()


def test_request_that_agrees_with_its_tier_is_taken(tiers, make_body):
    fields = {"sample_steps": 8, "guidance_scale": 1, "sampler": "lightning"}
    _, client = tiers
    assert explained(client, make_body(quality="turbo", **fields))["effective"][0]["sample_steps"] == 8


def test_tier_that_is_not_configured_is_refused_with_those_that_are(served, make_body):
    with served(tiers={"balanced": TIERS["balanced"]}) as (_, client):
        error = refusal(client, make_body(quality="fast"))
    assert error["message"] == "quality fast is not available: qwen_image_edit has exact, balanced here"
    assert error["details"] == {"quality": "fast", "available": ["exact", "balanced"]}


def test_tier_that_nobody_measured_for_these_loras_is_refused(served, make_body):
    with served(KnownLosses(adapters=set())) as (_, client):
        error = refusal(client, make_body(quality="balanced"))
    assert error["code"] == "QUALITY_UNAVAILABLE"
    assert "for these LoRAs; ask your operator for edits-server calibrate, or send max_loss" in error["message"]


def test_operator_may_allow_a_tier_that_nobody_measured(served, make_body):
    with served(KnownLosses(adapters=set()), tiers=tiers_with(uncalibrated="allow")) as (application, client):
        answer = explained(client, make_body(quality="balanced"))
        assert finished(client, make_body(quality="balanced"))["status"] == "succeeded"
        assert application.editors.tasks[-1].plan.quality == "balanced"
    [record] = answer["effective"]
    assert (record["quality"], record["loss"]) == ("balanced", None)
    assert "quality balanced: nobody has measured its loss for these LoRAs" in answer["notes"]
    assert record["why"]["quality"] == "asked for; its loss was not measured for these LoRAs"


def test_request_that_calibrates_needs_no_known_loss(served, make_body):
    request = InferenceRequest.model_validate(make_body(quality="balanced"))
    with served(KnownLosses(adapters=set())) as (application, client):
        caller = Caller("", limits=application.service.keys.limits_of(""))
        submit = application.service.submissions.submit
        record, _ = client.portal.call(lambda: submit(request, caller, "", calibrates=True))
    assert record.images[0].plan.quality == "balanced"


def test_tiers_adapter_that_is_missing_is_the_tiers_fault(served, make_body):
    with served(tiers={"turbo": {"adapter": "gone.safetensors"}}) as (_, client):
        error = refusal(client, make_body(quality="turbo"))
    assert error["code"] == "QUALITY_UNAVAILABLE"
    assert error["message"].startswith("quality turbo is not available: its LoRA cannot be used: ")
    assert "gone.safetensors" in error["message"]


@pytest.mark.parametrize("error", [LoraDownloadFailed("secret/path"), StorageFailed("secret/path")])
def test_tiers_adapter_that_cannot_be_fetched_now_may_be_asked_for_again(served, make_body, error, monkeypatch, caplog):
    with served() as (application, client):
        monkeypatch.setattr(application.service.submissions._admission.loras, "of_config", AsyncMock(side_effect=error))
        answer = client.post("/v1/inference", json=make_body(quality="turbo", sample_steps=None))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert "the LoRA of quality turbo cannot be fetched at the moment" in answer.json()["detail"]["error"]["message"]
    assert "secret/path" not in answer.text
    assert "secret/path" in caplog.text


MISSPELT = "set psnr_db, ssim or both, and no other field"


@pytest.mark.parametrize(
    ("max_loss", "reason"),
    [
        ({"psnr": 45}, MISSPELT),
        ({"psnr_db": 45, "sim": 0.9}, MISSPELT),
        ({}, MISSPELT),
        ({"psnr_db": None}, MISSPELT),
        ({"psnr_db": -5}, "greater than 0"),
        ({"ssim": 7}, "less than or equal to 1"),
    ],
)
def test_limit_that_would_be_none_is_refused(tiers, make_body, max_loss, reason):
    _, client = tiers
    answer = client.post("/v1/explain", json=make_body(quality="balanced", max_loss=max_loss))
    assert answer.status_code == 422
    assert reason in answer.text
    preset = {"model": "qwen_image_edit", "quality": "balanced", "max_loss": max_loss}
    _, malformed = read_ingress_settings({"presets": {"quick": preset}})
    assert reason in malformed["quick"].reason


def test_gate_has_no_effect_without_guidance_and_a_note_says_so(tiers, make_body):
    application, client = tiers
    body = make_body(quality="fast", guidance_scale=1)
    answer = explained(client, body)
    finished(client, body)
    plan = application.editors.tasks[-1].plan
    assert (plan.guidance_gate, plan.guidance_gate_rest) == (None, "drop")
    assert any("its guidance_gate has no effect on prompts" in note for note in answer["notes"])


LOSSY_OPTIONS = ({"feature_cache": 0.1}, {"quantization": "fp8"})


@pytest.mark.parametrize("options", LOSSY_OPTIONS)
def test_models_own_lossy_options_are_called_lossy(served, make_body, options):
    with served(**options) as (application, client):
        [record] = explained(client, make_body())["effective"]
        finished(client, make_body())
        plan = application.editors.tasks[-1].plan
        assert (record["quality"], record["loss"], plan.quality) == ("lossy", None, "lossy")
        assert "quality" not in record["request"]
        assert plan.editor_group == "qwen_image_edit"
        [repeated] = explained(client, record["request"])["effective"]
        assert repeated["quality"] == "lossy"
        # Whoever asks for exact pixels does not get others.
        for quality in ("exact", "fast"):
            error = refusal(client, make_body(quality=quality))
            assert error["details"] == {"quality": quality, "available": []}
            [name] = options
            assert f"runs qwen_image_edit with {name}: {options[name]}; leave out quality" in error["message"]


def test_sweep_that_names_no_quality_runs_on_a_lossy_model(served, make_body):
    with served(feature_cache=0.1) as (_, client):
        sent = {"base": make_body(), "axes": {"seeds": [1, 2]}, "dry_run": True}
        assert client.post("/v1/sweeps", json=sent).json()["cells"] == 2
        answer = client.post("/v1/sweeps", json=sent | {"axes": {"qualities": ["exact"]}})
        assert answer.json()["detail"]["error"]["code"] == "QUALITY_UNAVAILABLE"


def test_preset_may_name_a_tier(served, make_body):
    preset = {"model": "qwen_image_edit", "loras": [{"path": "job/lora.safetensors"}], "quality": "turbo"}
    body = make_body(preset="quick", sample_steps=None, loras=None, model=None)
    with served() as (application, client):
        application.service.reconfigure(*read_ingress_settings({"presets": {"quick": preset}}))
        assert explained(client, body)["effective"][0]["quality"] == "turbo"
        assert explained(client, body | {"quality": "exact"})["effective"][0]["quality"] == "exact"
    with served(KnownLosses(adapters=set())) as (application, client):
        application.service.reconfigure(*read_ingress_settings({"presets": {"quick": preset}}))
        error = refusal(client, body)
    assert (error["code"], error["details"]["code"]) == ("PRESET_BROKEN", "QUALITY_UNAVAILABLE")


def test_models_list_their_qualities(served):
    with served() as (_, client):
        [model] = client.get("/v1/models").json()["models"]
    assert model["qualities"] == ["exact", "balanced", "fast", "turbo"]
    assert [tier["quality"] for tier in model["tiers"]] == ["balanced", "fast", "turbo"]
    turbo = model["tiers"][2]
    assert (turbo["sample_steps"], turbo["guidance_scale"], turbo["sampler"]) == (8, 1, "lightning")
    assert turbo["needs_calibration"]
    # Whoever chooses a tier need not know its file.
    assert DISTILLED not in str(model)
    with served(feature_cache=0.1) as (_, client):
        [model] = client.get("/v1/models").json()["models"]
    assert (model["qualities"], model["tiers"]) == ([], [])


OWN = "qwen_image_edit-fast"


def test_tier_in_fp8_waits_for_its_own_editors_and_holds_nobody_up(served, make_body):
    with served() as (application, client):
        application.running[OWN] = 0
        queued = client.post("/v1/inference", json=make_body(quality="fast")).json()
        # Editors that make everything else go on.
        assert finished(client, make_body(quality="balanced"))["status"] == "succeeded"
        assert finished(client, make_body())["status"] == "succeeded"
        assert client.get(queued["status_url"]).json()["status"] == "in_queue"
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["waiting_for"]) == (503, [OWN])
        models = {model["id"]: model for model in client.get("/v1/operation").json()["models"]}
        of_tier = models[OWN]
        assert (of_tier["model"], of_tier["tier"], of_tier["editors_running"]) == ("qwen_image_edit", "fast", 0)
        assert (of_tier["waiting"], models["qwen_image_edit"]["waiting"]) == (1, 0)
        backlogs = client.portal.call(application.service.workload.backlogs)
        assert (backlogs[OWN].images, backlogs["qwen_image_edit"].images) == (1, 0)
        application.running[OWN] = 1
        application.service._dispatcher.wake()
        wait_until(lambda: client.get(queued["status_url"]).json()["status"] == "succeeded", 30)
    assert application.editors.tasks[-1].plan.editor_group == OWN


def test_sweep_over_qualities_goes_to_the_editors_of_each(served, make_body):
    body = make_body(sample_steps=2)
    base = {name: body[name] for name in ("model", "loras", "prompts")}
    with served() as (application, client):
        application.running[OWN] = 0
        sent = {"base": base, "axes": {"qualities": ["exact", "fast"], "seeds": [1, 2]}}
        sweep = client.post("/v1/sweeps", json=sent).json()
        url = f"/v1/sweeps/{sweep['sweep_id']}"
        wait_until(lambda: client.get(url).json()["counts"]["succeeded"] == 2, 30)
        assert client.get(url).json()["counts"]["in_queue"] == 2
        application.running[OWN] = 1
        application.service._dispatcher.wake()
        wait_until(lambda: client.get(url).json()["status"] == "succeeded", 30)
    made = [(task.plan.quality, task.plan.seed) for task in application.editors.tasks]
    assert sorted(made) == [("exact", 1), ("exact", 2), ("fast", 1), ("fast", 2)]


def test_loss_in_the_job_database_is_found(served, config, make_body):
    changed = AppConfig.model_validate(
        config.model_dump() | {"models": [config.models[0].model_dump() | {"tiers": TIERS}]}
    )
    application = Application(changed)
    [model] = changed.models
    with TestClient(application.app) as client:
        refusal(client, make_body(quality="balanced"))
        [lora] = explained(client, make_body())["effective"][0]["loras"]

        async def measure() -> None:
            store = application.service.resources.store.calibrations
            digest = model.tiers["balanced"].digest()
            key = await MeasuredLosses(store).key(model, "balanced", digest, [lora["id"]])
            await store.record(Calibration(key, LOSS))

        client.portal.call(measure)
        [record] = explained(client, make_body(quality="balanced"))["effective"]
        assert record["loss"]["cases"] == LOSS.cases
        # For the model without the LoRA, or with a tier that was changed since, nothing was measured.
        refusal(client, make_body(quality="fast"))


@pytest.mark.parametrize(
    ("theirs", "ours", "answered"),
    [("auto", "exact", "high"), ("hd", "exact", "high"), ("medium", "balanced", "medium"), ("low", "fast", "low")],
)
def test_openais_names_of_qualities_are_tiers(tiers, control_png, theirs, ours, answered):
    fields = {"model": "qwen_image_edit", "prompt": "make it night", "quality": theirs, "size": "64x64"}
    fields |= {"loras": '[{"path": "job/lora.safetensors"}]', "steps": "2"}
    application, client = tiers
    answer = client.post("/v1/images/edits", data=fields, files={"image": control_png})
    assert answer.status_code == 200, answer.text
    assert application.editors.tasks[-1].plan.quality == ours
    assert answer.json()["quality"] == answered
    assert answer.json()["tier"] == ours
    loss = answer.json()["loss"]
    assert (loss and (loss["on"], loss["measured_at"])) == (
        None if ours == "exact" else (LOSS.on, "2023-11-14T22:13:20Z")
    )
    events = client.post("/v1/images/edits", data=fields | {"stream": "true"}, files={"image": control_png})
    data = events.text.partition("event: image_edit.completed")[2].partition("data: ")[2].partition("\n")[0]
    assert (json.loads(data)["tier"], json.loads(data)["loss"]) == (ours, loss)


def test_limit_without_a_tier_has_no_effect_and_a_note_says_so(tiers, make_body):
    _, client = tiers
    for quality, is_said in (("exact", True), ("balanced", False)):
        notes = explained(client, make_body(quality=quality, max_loss={"psnr_db": 1}))["notes"]
        assert any(note.startswith("max_loss has no effect") for note in notes) == is_said


def test_openais_medium_without_such_a_tier_is_refused(served, control_png):
    fields = {"model": "qwen_image_edit", "prompt": "make it night", "quality": "medium"}
    fields |= {"loras": '[{"path": "job/lora.safetensors"}]'}
    with served(tiers={"fast": TIERS["fast"]}) as (_, client):
        answer = client.post("/v1/images/edits", data=fields, files={"image": control_png})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("QUALITY_UNAVAILABLE", "quality")
    assert error["message"] == "quality balanced is not available: qwen_image_edit has exact, fast here"


@pytest.mark.parametrize(
    ("max_loss", "known", "quality", "reason"),
    [
        ({"psnr_db": 38.2, "ssim": 0.97}, None, "balanced", None),
        ({"psnr_db": 38.3}, None, "exact", "the worst PSNR that was measured is 38.2, and max_loss asks for 38.3"),
        ({"ssim": 0.98}, None, "exact", "the worst SSIM that was measured is 0.97, and max_loss asks for 0.98"),
        ({"psnr_db": 1}, set(), "exact", "nobody has measured its loss for these LoRAs"),
    ],
)
def test_max_loss_makes_exact_what_would_lose_more_and_says_so(served, make_body, max_loss, known, quality, reason):
    lora = {"path": "job/lora.safetensors"}
    preset = {"model": "qwen_image_edit", "loras": [lora], "quality": "balanced", "max_loss": max_loss}
    with served(KnownLosses(known)) as (application, client):
        application.service.reconfigure(*read_ingress_settings({"presets": {"quick": preset}}))
        of_request = explained(client, make_body(quality="balanced", max_loss=max_loss))
        of_preset = explained(client, make_body(preset="quick", loras=None, model=None))
        finished(client, make_body(quality="balanced", max_loss=max_loss))
        plan = application.editors.tasks[-1].plan
    for answer in (of_request, of_preset):
        [record] = answer["effective"]
        assert record["quality"] == record["request"]["quality"] == plan.quality == quality
        sentence = f"exact instead of balanced: {reason}"
        assert (sentence in answer["notes"]) == (record["why"]["quality"] == sentence) == (reason is not None)
    assert plan.feature_cache == (0.1 if quality == "balanced" else None)


def test_exact_instead_of_a_tier_has_none_of_the_fields_that_the_tier_fixes(served, make_body):
    fixed = {"sample_steps": 8, "guidance_scale": 1, "sampler": "lightning"}
    too_much = {"psnr_db": 60}
    preset = {"model": "qwen_image_edit", "loras": [{"path": "job/lora.safetensors"}], "quality": "turbo"}
    preset |= {"max_loss": too_much, "sample_steps": 8, "guidance_scale": 1}
    with served() as (application, client):
        application.service.reconfigure(*read_ingress_settings({"presets": {"quick": preset}}))
        [of_tier] = explained(client, make_body(quality="turbo", sample_steps=None))["effective"]
        bodies = [
            make_body(quality="turbo", max_loss=too_much, **fixed),
            make_body(preset="quick", sample_steps=None, loras=None, model=None),
            of_tier["request"] | {"max_loss": too_much},
        ]
        # From here on the control image is stored.
        finished(client, bodies[0])
        plan = application.editors.tasks[-1].plan
        bodies.append(make_body(quality="turbo", max_loss=too_much, sample_steps=None))
        answers = [explained(client, body) for body in bodies]
    assert (plan.quality, plan.steps, plan.guidance_scale, plan.sampler) == ("exact", 25, 4.0, "flowmatch")
    of_preset = "sample_steps, guidance_scale"
    for answer, names in zip(answers, [f"{of_preset}, sampler", of_preset, f"{of_preset}, sampler", None], strict=True):
        [record] = answer["effective"]
        assert (record["quality"], record["sample_steps"], record["sampler"]) == ("exact", 25, "flowmatch")
        assert record["guidance_scale"] == 4.0
        [note] = [note for note in answer["notes"] if note.startswith("exact instead of turbo: the worst PSNR")]
        assert note.endswith(f"; the tier's {names} do not count for exact images and were left out") == bool(names)
        assert note == record["why"]["quality"]


def test_measured_seconds_decide_the_predicted_work(tiers, make_body):
    works = {}
    application, client = tiers
    for quality in ("exact", "balanced", "fast", "turbo"):
        request = InferenceRequest.model_validate(make_body(quality=quality, sample_steps=None))

        async def admitted(request: InferenceRequest = request) -> float:
            caller = Caller("", limits=application.service.keys.limits_of(""))
            admission = application.service.submissions._admission
            with application.service.resources.image_memory.hold("") as hold:
                made = await admission.admit(request, NO_PARTS, caller, hold)
            return admission.work(made, made.edits[0])

        works[quality] = client.portal.call(admitted)
    # 6 s instead of 10 s, whatever makes it faster.
    assert works["balanced"] == works["fast"] == pytest.approx(0.6 * works["exact"])
    # A tier with steps of its own has its own work: 8 steps with one branch, not 25 with two.
    assert works["turbo"] == pytest.approx(works["exact"] * 8 / 50, rel=0.1)
