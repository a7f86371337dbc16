"""`edits-server keys` on a keys file: what it lists, writes and refuses."""

import json
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serve_app.config import AuthConfig
from serve_app.errors import Unauthorized
from serve_app.intake.callers.keys_file import key_id_of
from serve_app.intake.keys import Keys, new_key
from tests.conftest import edits_server

FILE = """# Who may call.
tenants:
  acme: [{acme}]  # the first customer
  blue:
    keys:
      # the app
      - {{sha256: {blue}, scopes: [submit, read], expires_at: 2020-01-01T00:00:00Z}}
    allow: [blue/**]
operators: [{boss}]
"""


@pytest.fixture
def keys() -> dict[str, tuple[str, str]]:
    return {name: new_key() for name in ("acme", "blue", "boss")}


@pytest.fixture
def file(tmp_path: Path, keys) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(FILE.format(**{name: sha256 for name, (_, sha256) in keys.items()}))
    path.chmod(0o640)
    return path


def known(file: Path, seconds_later: float = 0.0) -> Keys:
    now = datetime.now(UTC) + timedelta(seconds=seconds_later)
    return Keys(AuthConfig(keys_file=str(file)), clock=now.timestamp)


def audited(text: str) -> dict:
    [line] = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return line


def test_it_lists_keys_without_their_hashes(file, keys, capsys):
    assert edits_server("keys", "list", "--file", file) == 0
    shown = capsys.readouterr().out
    rows = [line.split(maxsplit=3) for line in shown.splitlines()]
    assert rows == [
        ["TENANT", "KEY", "SCOPES", "EXPIRES"],
        ["acme", keys["acme"][1][:8], "operate,read,submit", "never"],
        ["blue", keys["blue"][1][:8], "read,submit", "2020-01-01T00:00:00Z (expired)"],
        ["(operators)", keys["boss"][1][:8], "operate,read,submit", "never"],
    ]
    assert not re.search("[0-9a-f]{9}", shown)


def test_a_new_key_is_added_behind_the_others_and_the_rest_of_the_file_stays(file, keys, capsys):
    before = file.read_text()
    assert edits_server("keys", "new", "acme", "--file", file, "--scope", "read", "--days", 1) == 0
    output = capsys.readouterr()
    key = output.out.split()[0]
    caller = known(file).caller(None, key)
    assert (caller.tenant, caller.scopes) == ("acme", {"read"})
    with pytest.raises(Unauthorized, match="expired"):
        known(file, 86_401).caller(None, key)
    changed = [line for line in file.read_text().splitlines() if line not in before.splitlines()]
    assert len(changed) <= 2
    for comment in ("# Who may call.", "# the first customer", "# the app"):
        assert comment in file.read_text()
    assert known(file).url_secrets("acme")[0] == known_by(before, file, keys)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["keys.yaml"]
    line = audited(output.err)
    assert (line["action"], line["target"], line["new_key"]) == ("keys.new", "acme", key_id_of(key))
    assert key not in output.err
    assert key not in file.read_text()


def known_by(text: str, file: Path, keys) -> bytes:
    """The first secret for URLs of the tenant acme, as this content of a file has it."""
    earlier = file.parent / "earlier.yaml"
    earlier.write_text(text)
    secret = known(earlier).url_secrets("acme")[0]
    earlier.unlink()
    return secret


@pytest.mark.parametrize("who", [["first"], ["--operator"]])
def test_a_new_file_is_made_for_its_owner_alone(tmp_path, capsys, who):
    file = tmp_path / "new.yaml"
    assert edits_server("keys", "new", *who, "--file", file) == 0
    assert known(file).caller(None, capsys.readouterr().out.split()[0]).is_operator == (who == ["--operator"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_rotated_key_ends_after_the_grace_period(file, keys, capsys):
    old = keys["acme"][0]
    assert edits_server("keys", "rotate", key_id_of(old), "--file", file, "--grace-hours", 2) == 0
    output = capsys.readouterr()
    key = output.out.split()[0]
    assert known(file).caller(None, old) == known(file).caller(None, key)
    assert known(file, 2 * 3600 + 1).caller(None, key).tenant == "acme"
    with pytest.raises(Unauthorized, match="expired"):
        known(file, 2 * 3600 + 1).caller(None, old)
    assert (audited(output.err)["action"], audited(output.err)["target"]) == ("keys.rotate", key_id_of(old))


def test_a_rotated_key_keeps_its_scopes_and_an_earlier_end(file, keys, capsys):
    assert edits_server("keys", "rotate", key_id_of(keys["blue"][0]), "--file", file) == 0
    key = capsys.readouterr().out.split()[0]
    caller = known(file).caller(None, key)
    assert (caller.scopes, caller.allowed.lora("blue/a"), caller.allowed.lora("a")) == ({"submit", "read"}, True, False)
    with pytest.raises(Unauthorized, match="expired at 2020-01-01"):
        known(file).caller(None, keys["blue"][0])


def test_a_revoked_key_is_unknown(file, keys, capsys, monkeypatch):
    monkeypatch.setenv("KEYS_FILE", str(file))
    assert edits_server("keys", "revoke", key_id_of(keys["boss"][0])) == 0
    with pytest.raises(Unauthorized, match="unknown"):
        known(file).caller(None, keys["boss"][0])
    assert audited(capsys.readouterr().err)["action"] == "keys.revoke"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["revoke", "0" * 8], r"'00000000' names no key of .*keys\.yaml: give at least 8 characters"),
        (["revoke", ""], r"names more than one key"),
        (["rotate", "abc"], r"names no key"),
        (["list", "--file", "/no/such/file"], r"/no/such/file cannot be read"),
    ],
)
def test_what_cannot_be_done_changes_nothing(file, capsys, arguments, says):
    before = file.read_text()
    assert edits_server("keys", *arguments, *([] if "--file" in arguments else ["--file", file])) == 1
    assert re.search(says, capsys.readouterr().err)
    assert file.read_text() == before


def test_the_last_key_cannot_be_revoked(tmp_path, capsys):
    file = tmp_path / "keys.yaml"
    assert edits_server("keys", "new", "acme", "--file", file) == 0
    key_id = key_id_of(capsys.readouterr().out.split()[0])
    assert edits_server("keys", "revoke", key_id, "--file", file) == 1
    assert f"{file} has no keys, so nobody could use the service" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["keys.yaml"]


@pytest.mark.parametrize(("scope", "says"), [("read", "--file"), ("write", "there is no scope 'write'")])
def test_scopes_that_cannot_be_written_are_refused(capsys, scope, says):
    assert edits_server("keys", "new", "acme", "--scope", scope) == 2
    assert says in capsys.readouterr().err
