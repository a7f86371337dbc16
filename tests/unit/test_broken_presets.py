"""Presets that cannot be used: how they are found and named, and how they heal. The service stays ready."""

import time
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.adapters.lora_root import BEGINNING_BYTES
from serve_app.api.app import create_app
from serve_app.config import AppConfig, AuthConfig, IngressSettings, Preset, read_ingress_settings
from serve_app.errors import LoraNotFound, Overloaded
from serve_app.intake.keys import new_key
from serve_app.intake.presets import CHECK_S, REMOTE_CHECK_S, Presets
from serve_app.intake.service import Service
from serve_app.intake.tenants import Caller
from serve_app.storage.artifacts import Artifacts
from serve_app.telemetry.metrics import NO_MODEL, SUBMISSIONS
from tests.loraserver import lora_server
from tests.unit.conftest import PAIR, Application, InstantEditors, safetensors_bytes
from tests.unit.test_explain import ALL_MODELS, explained
from tests.unit.test_presets import LORA, PROMPT, STYLE, configure, refusal
from tests.unit.test_telemetry import Recorder

BODY = {"preset": "style", "prompts": [PROMPT]}
GONE = {"path": "job/gone.safetensors"}
MISFIT = safetensors_bytes({"diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight": (2, 99)})


def checked(application: Application, client: TestClient) -> list[dict]:
    """The broken presets, by name, after a round of checks. The service is ready all the same."""
    client.portal.call(application.service.presets.check_due)
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    return answer.json()["broken_presets"]


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"model": "flux"}, "MODEL_NOT_FOUND", "no model 'flux'"),
        ({"model": "qwen_image_edit_plus"}, "MODEL_NOT_FOUND", "no model 'qwen_image_edit_plus'"),
        ({"loras": [GONE]}, "LORA_NOT_FOUND", "no LoRA file 'job/gone.safetensors'"),
        ({"loras": [{"path": "../x.safetensors"}]}, "LORA_PATH_FORBIDDEN", "out of the LoRA root"),
        ({"loras": [{"path": "job/misfit.safetensors"}]}, "LORA_INCOMPATIBLE", "does not fit"),
        ({"loras": [{"path": "job/empty.safetensors"}]}, "LORA_INVALID_FILE", "is empty"),
        ({"loras": [LORA] * 5}, "TOO_MANY_LORAS", "at most 4"),
        ({"quality": "fast"}, "QUALITY_UNAVAILABLE", "quality fast is not available"),
        ({"neg": "a <|image_pad|>"}, "INVALID_PARAMETER", "neg holds <|image_pad|>"),
        ({"sample_steps": 151}, "CONFIG_REFUSED", "sample_steps: Input should be less than or equal to 150"),
        ({"size": "huge"}, "CONFIG_REFUSED", "size: A size is 'input'"),
        ({"output_format": "gif"}, "CONFIG_REFUSED", "output_format: Input should be 'jpeg'"),
        ({"loras": [LORA | {"network_multiplier": 3}]}, "CONFIG_REFUSED", "loras.0.network_multiplier: "),
        ({"lora": []}, "CONFIG_REFUSED", "lora: Extra inputs are not permitted"),
        ({"profile": "mine"}, "CONFIG_REFUSED", "profile: Input should be 'reference'"),
        ({"model": None}, "CONFIG_REFUSED", "model: Input should be a valid string"),
    ],
)
def test_broken_preset_is_named_and_refused(application, client, tmp_path, changes, code, reason):
    (tmp_path / "loras/job/misfit.safetensors").write_bytes(MISFIT)
    (tmp_path / "loras/job/empty.safetensors").touch()
    configure(application, style=STYLE | changes, sound=STYLE)
    [broken] = checked(application, client)
    assert (broken["name"], broken["code"]) == ("style", code)
    assert reason in broken["message"]
    assert "prompt 0" not in broken["message"]
    error = refusal(client, BODY)
    assert (error["code"], error["details"]["code"], error["details"]["preset"]) == ("PRESET_BROKEN", code, "style")
    assert error["message"] == f"the preset 'style' cannot be used: {broken['message']}"
    # It does not take the others away.
    assert client.post("/v1/inference", json=BODY | {"preset": "sound"}).status_code == 200


def test_broken_preset_is_refused_before_it_was_checked(application, client, tmp_path):
    """The error of its own file is the preset's, and that of a file that the request names is the request's."""
    application.service.presets._check = None
    configure(application, style=STYLE | {"loras": [GONE]}, misfit=STYLE | {"loras": [{"path": "job/m.safetensors"}]})
    (tmp_path / "loras/job/m.safetensors").write_bytes(MISFIT)
    error = refusal(client, BODY)
    assert (error["code"], error["details"]["code"]) == ("PRESET_BROKEN", "LORA_NOT_FOUND")
    assert error["details"]["lora_path"] == GONE["path"]
    assert refusal(client, BODY | {"preset": "misfit"})["details"]["code"] == "LORA_INCOMPATIBLE"
    assert refusal(client, BODY | {"loras": [GONE]})["code"] == "LORA_NOT_FOUND"
    assert refusal(client, BODY | {"loras": [{"path": "job/m.safetensors"}]})["code"] == "LORA_INCOMPATIBLE"
    assert refusal(client, BODY | {"model": "flux"})["code"] == "MODEL_NOT_FOUND"
    assert client.post("/v1/inference", json=BODY | {"loras": [LORA]}).status_code == 200


def test_repaired_file_heals_the_preset(application, client, tmp_path):
    file = tmp_path / "loras/job/gone.safetensors"
    configure(application, style=STYLE | {"loras": [GONE]})
    for content, code in ((None, "LORA_NOT_FOUND"), (b"", "LORA_INVALID_FILE"), (MISFIT, "LORA_INCOMPATIBLE")):
        if content is not None:
            file.write_bytes(content)
        assert [broken["code"] for broken in checked(application, client)] == [code]
        assert refusal(client, BODY)["code"] == "PRESET_BROKEN"
    file.write_bytes(safetensors_bytes())
    assert checked(application, client) == []
    assert client.post("/v1/inference", json=BODY).status_code == 200
    file.unlink()
    assert [broken["code"] for broken in checked(application, client)] == ["LORA_NOT_FOUND"]


def test_presets_are_checked_without_being_asked_for(application, client):
    configure(application, style=STYLE | {"loras": [GONE]})
    deadline = time.monotonic() + CHECK_S / 2
    while not (broken := client.get("/ready").json()["broken_presets"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert broken[0]["code"] == "LORA_NOT_FOUND"


@pytest.mark.parametrize("profile", ["trainer", "auto"])
def test_profile_that_the_models_options_contradict_breaks_a_preset(config, profile):
    model = config.models[0].model_copy(update={"feature_cache": 0.1})
    application = Application(config.model_copy(update={"models": (model,)}))
    style = {name: value for name, value in STYLE.items() if name != "quality"}
    configure(application, style=style | {"profile": profile})
    with TestClient(application.app) as client:
        [broken] = checked(application, client)
    assert broken["code"] == "INVALID_PARAMETER"


def test_size_of_an_input_breaks_the_preset_of_a_model_without_one(config):
    application = Application(AppConfig.model_validate(config.model_dump() | {"models": ALL_MODELS}))
    configure(application, style=STYLE | {"model": "qwen_image", "size": "input", "loras": []})
    with TestClient(application.app) as client:
        [broken] = checked(application, client)
    assert (broken["code"], "takes no control image" in broken["message"]) == ("INVALID_PARAMETER", True)


def test_name_of_a_model_stays_the_models(application, client, make_body):
    configure(application, qwen_image_edit=STYLE, qwen_image=STYLE)
    broken = checked(application, client)
    assert [(preset["name"], preset["code"]) for preset in broken] == [
        ("qwen_image", "CONFIG_REFUSED"),
        ("qwen_image_edit", "CONFIG_REFUSED"),
    ]
    assert "is the id of a model" in broken[0]["message"]
    assert refusal(client, BODY | {"preset": "qwen_image_edit"})["code"] == "PRESET_BROKEN"
    [entry] = client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["owned_by"]) == ("qwen_image_edit", "Qwen")
    assert explained(client, make_body())["effective"][0]["preset"] is None


@pytest.mark.parametrize("name", ["", "two words", "-x", "a/b", "x" * 101, "ä", 2024])
def test_name_of_another_form_is_refused(name):
    settings, malformed = read_ingress_settings({"presets": {name: STYLE, "sound": STYLE}, "max_queued": 7})
    assert (list(settings.presets), settings.max_queued, list(malformed)) == (["sound"], 7, [str(name)])
    with pytest.raises(ValueError, match=r"letters, digits|valid string"):
        IngressSettings.model_validate({"presets": {name: STYLE}})


@pytest.mark.parametrize("presets", [None, {}])
def test_there_may_be_no_presets(presets):
    settings, malformed = read_ingress_settings({"presets": presets})
    assert (settings, malformed) == (IngressSettings(), {})


def test_other_keys_are_as_strict_as_ever():
    for user_config in ({"presets": {"style": STYLE}, "max_qeued": 7}, {"presets": []}, {"presets": "style"}):
        with pytest.raises(ValueError, match=r"max_qeued|presets"):
            read_ingress_settings(user_config)


@pytest.fixture
def open_to_loopback(config) -> AppConfig:
    fetch = {"allow_private_addresses": True, "hub_hosts": ["127.0.0.1"], "timeout_s": 1}
    return AppConfig.model_validate(config.model_dump() | {"fetch": fetch})


def test_lora_behind_a_url_is_looked_at_and_not_kept(open_to_loopback, tmp_path):
    application = Application(open_to_loopback)
    large = safetensors_bytes(PAIR | {"emb_params": (2_000_000,)})
    with lora_server(large) as server, TestClient(application.app) as client:
        url = f"{server.url}?signature=hush"
        configure(application, style=STYLE | {"loras": [{"path": url}]})
        assert checked(application, client) == []
        assert set(server.ranges) == {f"bytes=0-{BEGINNING_BYTES - 1}"}
        assert not list(Path(tmp_path).glob("artifacts/loras/*"))
        server.status = 404
        configure(application, style=STYLE | {"loras": [{"path": url}]})
        [broken] = checked(application, client)
        assert (broken["code"], "answered 404" in broken["message"]) == ("LORA_DOWNLOAD_FAILED", True)
        server.status, server.content = 200, MISFIT
        configure(application, style=STYLE | {"loras": [{"path": url}]})
        [broken] = checked(application, client)
        assert broken["code"] == "LORA_INCOMPATIBLE"
        [listed] = client.get("/v1/presets").json()["presets"]
        assert listed["loras"][0]["path"] == server.url
        error = refusal(client, BODY)
        assert "hush" not in str([broken, listed, error])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_files_are_looked_at_in_each_round_and_urls_less_often():
    clock, asked, errors = Clock(), [], []

    async def check(template) -> None:
        asked.append(template.loras[0].path)
        if errors:
            raise errors[-1]

    presets = Presets(check, lambda path: path.startswith("http"), clock=clock)
    loras = {"file": "a.safetensors", "url": "http://x/b.safetensors"}
    presets.replace({name: Preset(model="m", loras=[{"path": path}]) for name, path in loras.items()})

    async def asked_after(seconds: float) -> list[str]:
        asked.clear()
        clock.now += seconds
        await presets.check_due()
        return sorted(asked)

    both = sorted(loras.values())
    assert await asked_after(0) == both
    assert await asked_after(CHECK_S) == ["a.safetensors"]
    assert await asked_after(REMOTE_CHECK_S) == both
    errors.append(LoraNotFound("gone"))
    assert await asked_after(REMOTE_CHECK_S) == both
    assert [known.name for known in presets.broken()] == ["file", "url"]
    # Neither want of capacity nor a fault of ours says anything about a preset.
    for error in (Overloaded("busy"), ZeroDivisionError()):
        errors.append(error)
        assert await asked_after(CHECK_S) == both
        assert [known.name for known in presets.broken()] == ["file", "url"]
    # A preset that did not change stays as it is known, and is checked again at once.
    presets.replace({name: Preset(model="m", loras=[{"path": path}]) for name, path in loras.items()})
    assert [known.name for known in presets.broken()] == ["file", "url"]
    errors.clear()
    assert await asked_after(0) == both
    assert presets.broken() == []


async def test_preset_is_only_its_tenants_even_if_it_is_malformed():
    presets = Presets(None, lambda path: False)
    user_config = {
        "all": {"modle": "m"},
        "red": {"modle": "m", "tenants": ["red"]},
        "unclear": {"modle": "m", "tenants": "red"},
        "nothing": None,
    }
    settings, malformed = read_ingress_settings({"presets": user_config})
    presets.replace(settings.presets, malformed)

    def names(caller: Caller) -> list[str]:
        return [known.name for known in presets.visible_to(caller)]

    assert names(Caller("red", has_key=True)) == ["all", "red"]
    assert names(Caller("blue", has_key=True)) == ["all"]
    assert names(Caller(is_operator=True, has_key=True)) == sorted(user_config)


def test_presets_are_listed_with_what_they_set(application, client):
    configure(application, style=STYLE, plain={"model": "qwen_image_edit"}, broken={"model": "flux"})
    checked(application, client)
    broken, plain, style = client.get("/v1/presets").json()["presets"]
    assert style == STYLE | {"name": "style", "problem": None}
    assert plain == dict.fromkeys(STYLE) | {"name": "plain", "model": "qwen_image_edit", "loras": [], "problem": None}
    assert (broken["name"], broken["problem"]["code"]) == ("broken", "MODEL_NOT_FOUND")
    answer = client.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["models"]] == ["qwen_image_edit"]
    assert [(entry["id"], entry["owned_by"]) for entry in answer["data"]] == [
        ("qwen_image_edit", "Qwen"),
        ("plain", "presets"),
        ("style", "presets"),
    ]
    assert all(entry["object"] == "model" and type(entry["created"]) is int for entry in answer["data"])


def test_lists_show_a_tenant_its_own_presets(config, tmp_path):
    keys = {who: new_key() for who in ("red", "blue", "operator")}
    file = tmp_path / "keys.yaml"
    tenants = {who: [keys[who][1]] for who in ("red", "blue")}
    file.write_text(yaml.safe_dump({"tenants": tenants, "operators": [keys["operator"][1]]}))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    configure(application, private=STYLE | {"tenants": ["red"]}, public=STYLE)
    with TestClient(application.app) as client:
        for who, expected in {
            "red": ["private", "public"],
            "blue": ["public"],
            "operator": ["private", "public"],
        }.items():
            headers = {"X-API-Key": keys[who][0]}
            listed = client.get("/v1/presets", headers=headers)
            assert [preset["name"] for preset in listed.json()["presets"]] == expected
            assert "tenants" not in listed.text
            data = client.get("/v1/models", headers=headers).json()["data"]
            assert [entry["id"] for entry in data[1:]] == expected
        assert client.get("/v1/presets").status_code == 401


def test_submissions_are_counted_for_the_presets_model(config):
    async def one_editor() -> dict[str, int]:
        return {"qwen_image_edit": 1}

    recorder = Recorder()
    service = Service(config, InstantEditors(Artifacts(config.artifacts_url)), one_editor, recorder)
    with TestClient(create_app(service)) as client:
        presets = {"style": STYLE, "broken": STYLE | {"loras": [GONE]}}
        service.reconfigure(*read_ingress_settings({"presets": presets}))
        for name in ("style", "broken", "unknown"):
            client.post("/v1/inference", json=BODY | {"preset": name})
    counted = recorder.of(SUBMISSIONS)
    assert counted[("qwen_image_edit", "ACCEPTED")] == 1
    assert counted[("qwen_image_edit", "PRESET_BROKEN")] == 1
    assert counted[(NO_MODEL, "PRESET_NOT_FOUND")] == 1
