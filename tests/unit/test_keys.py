"""Who calls: API keys, the file of their hashes, and how it changes under a running service."""

import hashlib
from pathlib import Path

import pytest
import yaml

from serve_app.config import AppConfig, AuthConfig
from serve_app.errors import KeysRefused, Unauthorized
from serve_app.intake import keys
from serve_app.intake.keys import Keys, new_key
from serve_app.intake.tenants import Caller, TenantLimits
from tests.conftest import edits_server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "CHECK_S", 0.0)


def write(file: Path, content: object) -> None:
    """Replace the file as a mounted secret is replaced: by another file under its name."""
    new = file.with_suffix(".new")
    new.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    new.replace(file)


def keys_of(file: Path) -> Keys:
    return Keys(AuthConfig(keys_file=str(file)))


def test_without_a_file_everybody_is_the_same_caller():
    anybody = Keys(AuthConfig())
    assert anybody.caller(None, None) == anybody.caller("Bearer whatever", "x") == Caller("", False, False)


def test_a_key_says_who_calls_in_either_header(file):
    (acme, acme_hash), (rotated, rotated_hash), (boss, boss_hash) = new_key(), new_key(), new_key()
    write(file, {"tenants": {"acme": [acme_hash, rotated_hash], "none yet": []}, "operators": [boss_hash]})
    known = keys_of(file)
    for authorization, x_api_key in (
        (f"Bearer {acme}", None),
        (f"bearer  {acme} ", None),
        (None, acme),
        (None, rotated),
        ("Basic Z3Vlc3Q6Z3Vlc3Q=", acme),
        ("Bearer a-gateway's-own-token", acme),
    ):
        assert known.caller(authorization, x_api_key) == Caller("acme", is_operator=False, has_key=True)
    assert known.caller(f"Bearer {boss}", None) == Caller("", is_operator=True, has_key=True)


def test_a_caller_has_the_limits_of_now(file):
    key, sha256 = new_key()
    write(file, {"tenants": {"acme": [sha256]}})
    for known, x_api_key in ((Keys(AuthConfig(), TenantLimits(3)), None), (keys_of(file), key)):
        known.limits = TenantLimits(max_queued=5)
        assert known.caller(None, x_api_key).limits.max_queued == 5


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [(None, None), ("", ""), ("Bearer", None), ("Bearer ", None), ("Basic Z3Vlc3Q6Z3Vlc3Q=", None)],
)
def test_error_without_a_key_names_the_header_to_send(file, authorization, x_api_key):
    write(file, {"operators": [new_key()[1]]})
    with pytest.raises(Unauthorized, match=r"Authorization: Bearer <key>.*X-API-Key: <key>") as caught:
        keys_of(file).caller(authorization, x_api_key)
    assert caught.value.status == 401


def test_a_wrong_key_is_refused_and_never_echoed(file):
    key, sha256 = new_key()
    write(file, {"tenants": {"acme": [sha256]}})
    for wrong in (key[:-1], key + "x", sha256, f"{key}é", "edits_secret"):
        with pytest.raises(Unauthorized) as caught:
            keys_of(file).caller(None, wrong)
        assert wrong not in str(caught.value)


def test_keys_rotate_without_a_restart(file):
    (old, old_hash), (new, new_hash) = new_key(), new_key()
    write(file, {"tenants": {"acme": [old_hash]}})
    known = keys_of(file)
    with pytest.raises(Unauthorized):
        known.caller(None, new)
    write(file, {"tenants": {"acme": [old_hash, new_hash]}})
    assert known.caller(None, new) == known.caller(None, old)
    write(file, {"tenants": {"acme": [new_hash]}})
    with pytest.raises(Unauthorized):
        known.caller(None, old)


def test_the_file_is_checked_only_now_and_then(file, monkeypatch):
    (key, sha256), (_, another) = new_key(), new_key()
    write(file, {"operators": [sha256]})
    known = keys_of(file)
    monkeypatch.setattr(keys, "CHECK_S", 60.0)
    write(file, {"operators": [another]})
    assert known.caller(None, key).is_operator


@pytest.mark.parametrize("broken", ["", "tenants: [", "tenants: {acme: [tooshort]}", "{}", None])
def test_a_broken_file_keeps_the_last_good_one_and_says_so_once(file, caplog, broken):
    (key, sha256), (_, another) = new_key(), new_key()
    write(file, {"operators": [sha256]})
    known = keys_of(file)
    if broken is None:
        file.unlink()
    else:
        write(file, broken)
    assert all(known.caller(None, key).is_operator for _ in range(3))
    assert [record.message.startswith("the API keys were not read again") for record in caplog.records] == [True]
    write(file, {"operators": [another]})
    with pytest.raises(Unauthorized):
        known.caller(None, key)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"tenant": {}}, r"tenant: Extra inputs are not permitted"),
        ({"tenants": {"acme": ["edits_a-key-itself"]}}, r"tenants\.acme\.0: .*not the SHA-256 of a key in 64 hex"),
        ({"tenants": {"acme": ["A" * 64]}}, r"64 hex digits, lower case"),
        ({"operators": ["a" * 63]}, r"operators\.0: .*64 hex digits"),
        ({"operators": "a" * 64}, r"operators: .*list"),
        ({"tenants": {"": ["a" * 64]}}, r"at least 1 character"),
        ({"tenants": {"x" * 101: ["a" * 64]}}, r"at most 100 characters"),
        ({"tenants": {7: ["a" * 64]}}, r"tenants\.7.*string"),
        ({"tenants": {"a": ["a" * 64], "b": ["a" * 64]}}, r"one key belongs to 'a' and 'b'"),
        ({"tenants": {"a": ["a" * 64]}, "operators": ["a" * 64]}, r"one key belongs to 'a' and 'operators'"),
        ({}, r"has no keys"),
        (f"tenants: {{a: [{'a' * 64}]}}\ntenants: {{b: [{'b' * 64}]}}\n", r"has one entry twice, see its line 2"),
        (f"tenants:\n  a: [{'a' * 64}]\n  'a': [{'b' * 64}]\n", r"has one entry twice, see its line 3"),
        (f"operators: [{'a' * 64}]\noperators: []\n", r"has one entry twice, see its line 2"),
        ([], r"the file: .*KeysFile"),
        ("tenants:\n  acme: [a\nsecret", r"is not YAML, see its line 3"),
        (b"\xff", r"cannot be read"),
        (None, r"cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_at_start(file, content, says):
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        write(file, content)
    with pytest.raises(KeysRefused, match=says) as caught:
        keys_of(file)
    for secret in ("edits_a-key-itself", "a" * 63, "secret"):
        assert secret not in str(caught.value)


def test_the_file_is_named_by_the_environment_relative_to_the_config(tmp_path, monkeypatch):
    monkeypatch.setenv("KEYS_FILE", "secrets/keys.yaml")
    config = AppConfig.model_validate({"auth": {"keys_file": "${KEYS_FILE}"}}).resolved(tmp_path)
    assert config.auth.keys_file == str(tmp_path / "secrets/keys.yaml")
    assert AppConfig().resolved(tmp_path).auth.keys_file is None


@pytest.mark.parametrize(
    ("arguments", "caller"),
    [(["acme & sons: west"], Caller("acme & sons: west", False, True)), (["--operator"], Caller("", True, True))],
)
def test_the_command_makes_a_key_and_prints_lines_of_a_keys_file(capsys, file, arguments, caller):
    made = []
    for _ in range(2):
        assert edits_server("keys", "new", *arguments) == 0
        made.append(capsys.readouterr().out.split("keys file:\n\n"))
    (first, lines), (second, _) = made
    key = first.splitlines()[0]
    assert key.startswith("edits_")
    assert len(key) == len("edits_") + 43
    assert key != second.splitlines()[0]
    assert hashlib.sha256(key.encode()).hexdigest() in lines
    assert key not in lines
    file.write_text(lines)
    assert keys_of(file).caller(f"Bearer {key}", None) == caller


@pytest.mark.parametrize("arguments", [[], ["new"], ["new", ""], ["new", "x" * 101], ["new", "a", "--operator"]])
def test_the_command_refuses_what_the_service_would(capsys, arguments):
    assert edits_server("keys", *arguments) == 2
    assert "edits_" not in capsys.readouterr().out
