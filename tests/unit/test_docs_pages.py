"""The interactive documentation loads nothing from another host, under any name and prefix of the service."""

import re
from urllib.parse import urljoin, urlsplit

import pytest
from starlette.testclient import TestClient

from tests.unit.conftest import SHARES_AN_APPLICATION, Application

pytestmark = SHARES_AN_APPLICATION

NAMED = re.compile(r"""(?:href|src|spec-url)="([^"]+)"|url: '([^']+)'""")
FOREIGN = re.compile(r"(?:https?:)?//[\w.-]+")


def links_of(page: str) -> set[str]:
    return {first or second for first, second in NAMED.findall(page)}


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
def test_page_names_no_other_host_and_everything_that_it_names_is_there(client, path):
    page = client.get(path)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert FOREIGN.findall(page.text) == []
    for link in links_of(page.text):
        found = client.get(urljoin(f"http://testserver{path}", link))
        assert found.status_code == 200, link
    assert len(links_of(page.text)) == {"/docs": 4, "/redoc": 3}.get(path, 0)


@pytest.mark.parametrize(
    ("file", "media_type"),
    [
        ("swagger-ui-bundle.js", "text/javascript"),
        ("swagger-ui.css", "text/css"),
        ("redoc.standalone.js", "text/javascript"),
    ],
)
def test_files_have_their_media_type_and_may_be_kept(client, file, media_type):
    answer = client.get(f"/docs/{file}")
    assert answer.headers["content-type"].split(";")[0] == media_type
    assert answer.headers["cache-control"].startswith("private, max-age=")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(answer.content) > 10_000


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_browsers_are_forbidden_to_load_from_another_host(client, path):
    """The scripts themselves know addresses of other hosts, such as that of a logo."""
    policy = dict(part.strip().split(" ", 1) for part in client.get(path).headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    sources = {source for value in policy.values() for source in value.split()}
    assert sources <= {"'self'", "'none'", "'unsafe-inline'", "data:", "blob:"}


def test_page_asks_no_other_host_to_validate_the_document(client):
    assert '"validatorUrl": null' in client.get("/docs").text


def test_redoc_shows_no_logo_from_another_host(client):
    assert "cdn.redoc.ly" not in client.get("/docs/redoc.standalone.js").text


def test_style_sheet_loads_nothing_from_another_host(client):
    style = client.get("/docs/swagger-ui.css").text
    assert [url for url in re.findall(r"url\(([^)]*)\)", style) if not url.strip("\"'").startswith("data:")] == []
    assert "@import" not in style


def test_pages_work_behind_a_prefix_and_under_allowed_hosts_alone(config):
    application = Application(config.model_copy(update={"allowed_hosts": ("edits.example.com",)}))
    base = "http://edits.example.com/prefix"
    with TestClient(application.app, base_url=base, root_path="/prefix") as client:
        for path in ("/docs", "/redoc"):
            page = client.get(f"{base}{path}")
            assert page.status_code == 200
            for link in links_of(page.text):
                url = urljoin(f"{base}{path}", link)
                assert urlsplit(url).path.startswith("/prefix/")
                assert client.get(url).status_code == 200
    with TestClient(application.app, base_url="http://other.example.com") as client:
        assert client.get("/docs").status_code == 400


def test_pages_are_no_part_of_the_document_that_they_show(client):
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "docs" in path or "redoc" in path]
