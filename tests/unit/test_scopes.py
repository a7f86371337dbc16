"""What a key is good for: scopes, expiry, and the patterns of its tenant."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.api.access import PUBLIC_PATHS
from serve_app.api.scopes import SCOPES
from serve_app.config import AppConfig, AuthConfig, IngressSettings
from serve_app.errors import KeysRefused, Unauthorized
from serve_app.intake import keys
from serve_app.intake.callers.allowed import Allowed
from serve_app.intake.callers.keys_file import read_keys
from serve_app.intake.keys import Keys, new_key
from serve_app.intake.tenants import Scope
from tests.conformity import code_of
from tests.training_folder import trainer_config, write_checkpoints, write_config
from tests.unit.conftest import Application, safetensors_bytes
from tests.unit.test_http_contract import finished
from tests.unit.test_openapi import operations

Started = Callable[..., TestClient]


@pytest.fixture
def started(config: AppConfig, tmp_path) -> Iterator[Started]:
    """A client of an application whose keys file has this content. Without a key of its own it has none."""
    clients = []

    def start(content: object, settings: IngressSettings | None = None) -> TestClient:
        file = tmp_path / "keys.yaml"
        file.write_text(yaml.safe_dump(content))
        application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
        if settings is not None:
            application.service.reconfigure(settings)
        clients.append(TestClient(application.app))
        return clients[-1].__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def entry(*scopes: str, **more: object) -> tuple[str, dict[str, object]]:
    """A key, and its entry in the file."""
    key, sha256 = new_key()
    return key, {"sha256": sha256, **({"scopes": list(scopes)} if scopes else {}), **more}


def test_every_operation_that_needs_a_key_needs_a_scope(config):
    document = Application(config).app.openapi()
    needing = {place for place, _ in operations(document) if place.split()[1] not in PUBLIC_PATHS}
    assert needing - SCOPES.keys() == set()
    assert SCOPES.keys() - needing == set()


def test_a_key_does_only_what_its_scopes_say(started, make_body):
    (read, reader), (submit, submitter), (operate, operator) = entry("read"), entry("submit"), entry("operate")
    client = started({"tenants": {"acme": {"keys": [reader, submitter, operator]}}})
    places = {"read": read, "submit": submit, "operate": operate}
    sent = client.post("/v1/inference", json=make_body(), headers={"X-API-Key": submit})
    assert sent.status_code == 200
    request_id = sent.json()["request_id"]
    calls = {
        "read": ("GET", f"/v1/requests/{request_id}/status"),
        "submit": ("POST", f"/v1/requests/{request_id}/cancel"),
        "operate": ("DELETE", f"/v1/requests/{request_id}"),
    }
    for needed, (method, path) in calls.items():
        for scope, key in places.items():
            answer = client.request(method, path, headers={"X-API-Key": key})
            if scope == needed:
                assert answer.status_code == 200
                continue
            error = answer.json()["detail"]["error"]
            assert (answer.status_code, error["code"]) == (403, "INSUFFICIENT_SCOPE")
            assert (
                error["message"]
                == f"this API key may not do this: it lacks the scope '{needed}'; use a key that has it"
            )
            assert error["details"] == {"needed": needed, "scopes": [scope]}
    refused = client.post("/v1/images/edits", json={"prompt": "x"}, headers={"X-API-Key": read})
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")


def test_an_operator_may_only_look(started, make_body):
    (key, (boss, looks)) = new_key(), entry("read")
    client = started({"tenants": {"acme": [key[1]]}, "operators": [looks]})
    request_id = client.post("/v1/inference", json=make_body(), headers={"X-API-Key": key[0]}).json()["request_id"]
    assert client.get(f"/v1/requests/{request_id}/status", headers={"X-API-Key": boss}).status_code == 200
    assert client.delete(f"/v1/requests/{request_id}", headers={"X-API-Key": boss}).status_code == 403


def test_an_unknown_route_or_method_is_answered_so_whatever_the_scopes(started):
    key, reader = entry("read")
    client = started({"tenants": {"acme": {"keys": [reader]}}})
    assert client.post("/v1/nothing", headers={"X-API-Key": key}).status_code == 404
    assert client.put("/v1/inference", headers={"X-API-Key": key}).status_code == 405


def test_a_key_expires(tmp_path):
    file = tmp_path / "keys.yaml"
    end = datetime(2030, 1, 1, tzinfo=UTC)
    (short, short_entry), (lasting, lasting_hash) = entry(expires_at=end), new_key()
    file.write_text(yaml.safe_dump({"tenants": {"acme": {"keys": [short_entry, lasting_hash]}}}))
    now = [end.timestamp() - 1]
    known = Keys(AuthConfig(keys_file=str(file)), clock=lambda: now[0])
    assert known.caller(None, short) == known.caller(None, lasting)
    assert len(known.url_secrets("acme")) == 2
    now[0] += 1
    with pytest.raises(Unauthorized, match=r"this API key expired at 2030-01-01T00:00:00Z; ask your operator"):
        known.caller(None, short)
    assert known.caller(None, lasting).tenant == "acme"
    assert len(known.url_secrets("acme")) == 1


def test_a_changed_file_changes_the_scopes_of_a_running_service(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "CHECK_S", 0.0)
    file = tmp_path / "keys.yaml"
    key, reader = entry("read")
    file.write_text(yaml.safe_dump({"tenants": {"acme": {"keys": [reader]}}}))
    known = Keys(AuthConfig(keys_file=str(file)))
    assert known.caller(None, key).scopes == {Scope.READ}
    file.write_text(yaml.safe_dump({"tenants": {"acme": {"keys": [reader | {"scopes": ["read", "submit"]}]}}}))
    assert known.caller(None, key).scopes == {Scope.READ, Scope.SUBMIT}


@pytest.mark.parametrize(
    ("tenant", "says"),
    [
        ({"keys": [{"sha256": "a" * 64, "scopes": ["write"]}]}, r"tenants\.acme\.keys\.0\.scopes\.0: .*'submit'"),
        ({"keys": [{"sha256": "a" * 64, "scopes": []}]}, r"tenants\.acme\.keys\.0\.scopes: .*at least 1 item"),
        (
            {"keys": [{"sha256": "a" * 64, "expires_at": "soon"}]},
            r"tenants\.acme\.keys\.0\.expires_at: .*valid datetime",
        ),
        ({"keys": [{"sha256": "a" * 64, "expires_at": datetime(2030, 1, 1)}]}, r"expires_at: .*timezone"),
        ({"keys": [{"sha256": "a" * 64, "scope": "read"}]}, r"keys\.0\.scope: Extra inputs"),
        ({"keys": ["a" * 63]}, r"tenants\.acme\.keys\.0: .*64 hex digits"),
        ({"allow": ["x"]}, r"tenants\.acme\.keys: Field required"),
        ({"keys": ["a" * 64], "allow": "x"}, r"tenants\.acme\.allow: .*tuple"),
        ({"keys": ["a" * 64], "allow": ["[z-a]"]}, r"tenants\.acme\.allow: .*'\[z-a\]' in the pattern"),
        ({"keys": ["a" * 64], "allow": ["?" * 21]}, r"tenants\.acme\.allow: .*at most 20 are accepted"),
        ({"keys": ["a" * 64, {"sha256": "a" * 64}]}, r"one key of 'acme' is listed twice"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused(tmp_path, tenant, says):
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"acme": tenant}}))
    with pytest.raises(KeysRefused, match=says) as caught:
        read_keys(file)
    assert "a" * 63 not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "path", "is_allowed"),
    [
        ("acme/*", "acme/a.safetensors", True),
        ("acme/*", "acme//./a.safetensors", True),
        ("acme/*", "acme/deep/a.safetensors", False),
        ("acme/**", "acme/deep/a.safetensors", True),
        ("acme/**", "acme2/a.safetensors", False),
        ("**/v?.safetensors", "a/b/v1.safetensors", True),
        ("https://h.example/acme/**", "https://h.example/acme/a.safetensors?sig=1", True),
        ("https://h.example/acme/**", "HTTPS://u:p@H.example/acme/a.safetensors", True),
        ("https://h.example/acme/**", "https://h.example/acme/../blue/a.safetensors", False),
        ("https://h.example/acme/**", "https://h.example/acme/%2e%2E/blue/a.safetensors", False),
        ("https://h.example/acme/**", "https://h.example/acme/..%2fblue/a.safetensors", False),
        ("https://h.example/acme/**", "https://h.example/acme/..\\blue/a.safetensors", False),
        ("https://h.example/acme/**", "https://h.example@evil.example/acme/a.safetensors", False),
        ("https://h.example/acme/**", "https://h.example.evil.example/acme/a", False),
        ("https://h.example/**", "https://[h.example/a", False),
        ("hf://acme/**", "hf://acme/lora@main/a.safetensors", True),
        ("hf://acme/**", "hf://acme/lora@main/../../../../blue/b/resolve/main/a.safetensors", False),
        ("acme/**", "https://h.example/acme/a.safetensors", False),
    ],
)
def test_a_pattern_names_loras(pattern, path, is_allowed):
    assert Allowed.of([pattern]).lora(path) is is_allowed


@pytest.mark.parametrize(
    ("pattern", "is_allowed"),
    [("job/**", True), ("job/*", True), ("**", True), ("job/*.safetensors", False), ("job/job_000000250.*", False)],
)
def test_a_training_job_is_allowed_with_its_whole_folder(pattern, is_allowed):
    assert Allowed.of([pattern]).training_job("job") is is_allowed


@pytest.fixture
def two_teams(started, config):
    """A client, and the keys of a tenant that may use `job/**` and one preset, and of one without patterns."""
    for name in ("mine", "theirs"):
        folder = Path(config.lora_root) / ("job" if name == "mine" else "other")
        write_config(folder, trainer_config())
        write_checkpoints(folder, safetensors_bytes())
    presets = {
        "mine": {"model": "qwen_image_edit", "loras": [{"path": "job/lora.safetensors"}]},
        "mine-of-others": {"model": "qwen_image_edit", "loras": [{"path": "other/lora.safetensors"}]},
        "theirs": {"model": "qwen_image_edit"},
    }
    (limited, limited_hash), (free, free_hash) = new_key(), new_key()
    content = {
        "tenants": {"acme": {"keys": [limited_hash], "allow": ["job/**", "preset:mine*"]}, "blue": [free_hash]},
    }
    return started(content, IngressSettings.model_validate({"presets": presets})), limited, free


def test_a_tenant_sees_and_uses_only_what_its_patterns_name(two_teams, make_body):
    client, limited, free = two_teams

    def names(path: str, group: str, name: str, key: str) -> set[str]:
        return {each[name] for each in client.get(path, headers={"X-API-Key": key}).json()[group]}

    theirs = next(path for path in names("/v1/loras", "loras", "path", free) if path.startswith("other/"))
    assert {path.split("/")[0] for path in names("/v1/loras", "loras", "path", limited)} == {"job"}
    assert names("/v1/presets", "presets", "name", limited) == {"mine"}
    assert names("/v1/presets", "presets", "name", free) == {"mine", "mine-of-others", "theirs"}
    assert names("/v1/training-jobs", "training_jobs", "name", limited) == {"job"}
    assert names("/v1/training-jobs", "training_jobs", "name", free) == {"job", "other"}
    client.headers["X-API-Key"] = limited
    assert client.get("/v1/training-jobs/job").status_code == 200
    for path in ("other", "other/samples/a.jpg", "other/previews/x"):
        assert code_of(client.get(f"/v1/training-jobs/{path}").json()) == "TRAINING_JOB_NOT_FOUND"
    assert code_of(client.get(f"/v1/loras/{theirs}").json()) == "LORA_NOT_FOUND"
    assert client.get("/v1/loras/job/lora.safetensors").status_code == 200
    finished(client, make_body())
    forbidden = [
        ("/v1/inference", make_body(loras=[{"path": theirs}]), "LORA_NOT_FOUND"),
        ("/v1/explain", make_body(loras=[{"path": theirs}]), "LORA_NOT_FOUND"),
        ("/v1/inference", make_body(loras=[{"path": "https://h.example/a.safetensors"}]), "LORA_PATH_FORBIDDEN"),
        ("/v1/inference", make_body() | {"preset": "theirs"}, "PRESET_NOT_FOUND"),
        ("/v1/sweeps", {"base": make_body(), "axes": {"checkpoints": [theirs]}}, "LORA_NOT_FOUND"),
        ("/v1/sweeps", {"base": make_body(), "axes": {"checkpoints": ["other/*"]}}, "LORA_NOT_FOUND"),
        ("/v1/sweeps", {"base": make_body(), "axes": {"checkpoints": [{"training_job": "other"}]}}, "LORA_NOT_FOUND"),
        ("/v1/training-jobs/other/previews", {"step": 250}, "TRAINING_JOB_NOT_FOUND"),
    ]
    for path, body, code in forbidden:
        answer = client.post(path, json=body)
        assert (answer.status_code, code_of(answer.json())) == (404 if "JOB" in code else 400, code), path
    call = {"model": "qwen_image_edit", "prompt": "x", "loras": [{"path": theirs}], "images": []}
    image = make_body()["prompts"][0]["ctrl_img"]
    refused = client.post("/v1/images/edits", json=call | {"images": [{"image_url": f"data:image/png;base64,{image}"}]})
    assert refused.json()["error"]["code"] == "LORA_NOT_FOUND"


def test_a_lora_that_is_not_allowed_reads_like_one_that_is_not_there(two_teams, make_body):
    client, limited, _ = two_teams
    client.headers["X-API-Key"] = limited
    [hidden, absent] = (
        client.post("/v1/inference", json=make_body(loras=[{"path": path}])).json()["detail"]["error"]
        for path in ("other/lora_000000250.safetensors", "other/nothing_at_all.safetensors")
    )
    assert hidden["message"].replace("lora_000000250", "nothing_at_all") == absent["message"]


def test_expiry_in_the_file_is_a_time_with_a_zone(started, make_body):
    key, soon = entry(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    client = started({"tenants": {"acme": {"keys": [soon]}}})
    answer = client.get("/v1/models", headers={"X-API-Key": key})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "expired" in answer.json()["detail"]["error"]["message"]
