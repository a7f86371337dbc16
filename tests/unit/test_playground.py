"""The files of the playground: who gets them, with which headers, and that the built package has them."""

import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.api.routes import playground
from serve_app.intake.keys import new_key
from tests.conftest import ROOT
from tests.unit.conftest import SHARES_AN_APPLICATION, Application

pytestmark = SHARES_AN_APPLICATION

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.mark.parametrize("path", sorted(playground.PATHS))
def test_files_are_sent_with_their_media_type_under_a_strict_policy(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    name = "index.html" if path == "/" else path.removeprefix("/web/")
    assert answer.content == (playground.FOLDER / name).read_bytes()
    expected = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    expected |= {"svg": "image/svg+xml", "jpg": "image/jpeg"}
    suffix = name.rpartition(".")[2]
    assert answer.headers["content-type"].split(";")[0] == expected.get(suffix, "text/plain")
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "no-cache" in answer.headers["cache-control"]


def test_a_file_that_the_browser_has_is_not_sent_again(client):
    client.headers["Accept-Encoding"] = "identity"
    etag = client.get("/").headers["etag"]
    again = client.get("/", headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.head("/").headers["content-length"] == str((playground.FOLDER / "index.html").stat().st_size)


def test_text_is_sent_in_gzip_to_those_that_accept_it(client):
    plain = client.get("/web/app.js", headers={"Accept-Encoding": "identity"})
    for refusal in ("gzip;q=0, br", "gzip; q=0.0", "br"):
        assert "content-encoding" not in client.get("/web/app.js", headers={"Accept-Encoding": refusal}).headers
    for wish in ("gzip", "br, gzip", "gzip; q=0.5", "gzip;q=1.0"):
        packed = client.get("/web/app.js", headers={"Accept-Encoding": wish})
        assert packed.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in packed.headers["vary"]
    assert "Accept-Encoding" in plain.headers["vary"]
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert packed.headers["etag"] == f"W/{plain.headers['etag']}"
    again = client.get("/web/app.js", headers={"If-None-Match": packed.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-encoding" not in client.get("/web/sample.jpg", headers={"Accept-Encoding": "gzip"}).headers


def test_all_files_together_have_less_than_150_kb_as_they_are_sent(client):
    answers = [client.get(path, headers={"Accept-Encoding": "gzip"}) for path in playground.PATHS]
    assert 50_000 < sum(int(answer.headers["content-length"]) for answer in answers) < 150_000


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web",
        "/web/nothing.js",
        "/web/../app.py",
        "/web/%2e%2e/app.py",
        "/web/..%2fapp.py",
        "/web/%2e%2e%2f%2e%2e%2fpyproject.toml",
        "/web//etc/passwd",
        "/web/%2fetc%2fpasswd",
        "/web/index.html%00",
        "/web/..\\app.py",
    ],
)
def test_nothing_outside_of_the_folder_is_sent(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "NOT_FOUND")


def test_a_wrong_method_is_told_which_ones_are_right(client):
    answer = client.post("/")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_one_line_of_the_config_turns_the_page_off(client_with):
    client = client_with(playground=False)
    for path in playground.PATHS:
        assert client.get(path).status_code == 404


@pytest.fixture
def keys_file(tmp_path):
    _, sha256 = new_key()
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"acme": [sha256]}}))
    return str(file)


def test_the_page_needs_no_key_and_what_it_calls_does(client_with, keys_file):
    client = client_with(auth={"keys_file": keys_file})
    for path in playground.PATHS:
        assert client.get(path).status_code == 200
    for path in ("/web/nothing.js", "/v1/models", "/v1/loras", "/v1/requests"):
        assert client.get(path).status_code == 401
    assert client.post("/").status_code == 401


def test_a_page_that_is_turned_off_answers_like_every_other_path(client_with, keys_file):
    client = client_with(auth={"keys_file": keys_file}, playground=False)
    for path in playground.PATHS:
        assert client.get(path).status_code == 401


def test_page_works_behind_a_prefix(config):
    with TestClient(Application(config).app, root_path="/prefix", base_url="http://a.example/prefix") as client:
        assert client.get("http://a.example/prefix/").status_code == 200
        assert client.get("http://a.example/prefix/web/index.html").status_code == 200


def test_page_is_no_part_of_the_openapi_document(client):
    assert not [path for path in client.get("/openapi.json").json()["paths"] if path == "/" or "web" in path]


def test_the_built_package_has_every_file(tmp_path):
    sources, wheels = tmp_path / "sources", tmp_path / "wheels"
    unneeded = shutil.ignore_patterns("__pycache__", "miniature_files")
    shutil.copytree(ROOT / "serve_app", sources / "serve_app", ignore=unneeded)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        wheels,
    ]
    subprocess.run([*build, sources], check=True, timeout=120)
    [wheel] = wheels.iterdir()
    expected = {path.relative_to(ROOT).as_posix() for path in playground.FOLDER.rglob("*") if path.is_file()}
    assert "serve_app/web/index.html" in expected
    assert expected <= set(zipfile.ZipFile(wheel).namelist())
