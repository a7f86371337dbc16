"""A service with API keys: the page asks for one, keeps it in the tab, and shows images by signed URLs."""

from collections.abc import Iterator

import pytest
import yaml
from playwright.sync_api import Browser, Page, expect

from serve_app.config import AppConfig, AuthConfig
from serve_app.intake.keys import new_key
from tests.browser.editing import fill_in, make_the_edit
from tests.browser.finished import finished_edit
from tests.browser.painting import PaintingEditors
from tests.browser.visit import Visit, serious_findings, visiting
from tests.unit.conftest import Application
from tests.unit.serving import Served, serving


@pytest.fixture
def key() -> tuple[str, str]:
    """A key and its SHA-256."""
    return new_key()


@pytest.fixture
def served(config: AppConfig, tmp_path, key) -> Iterator[Served]:
    """The application, with this key for the tenant `red`."""
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"red": [key[1]]}}))
    with serving(
        Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}), PaintingEditors)
    ) as it:
        yield it


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Visit]:
    with visiting(browser, served.url) as visit:
        # The browser reports each answer 401 in its console.
        visit.expect("status of 401")
        yield visit


def give(page: Page, key: str) -> None:
    page.get_by_label("API key", exact=True).fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_key_is_asked_for_once_and_everything_works_with_it(served: Served, visit: Visit, key) -> None:
    page = visit.open()
    dialog = page.get_by_role("dialog", name="This service needs an API key")
    expect(dialog).to_be_visible()
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    assert serious_findings(page) == []
    give(page, key[0])
    expect(dialog).to_be_hidden()
    fill_in(page)
    make_the_edit(page)
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    page.goto(f"{served.url}/#history")
    image = page.get_by_role("list", name="Requests").locator("img")
    expect(image).to_have_count(1)
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    assert "?token=" in image.get_attribute("src")
    expect(dialog).to_be_hidden()


def test_key_stays_in_the_tab_alone(browser: Browser, served: Served, visit: Visit, key) -> None:
    page = visit.open()
    give(page, key[0])
    expect(page.locator(".lora-option").first).to_be_visible()
    page.reload()
    expect(page.locator(".lora-option").first).to_be_visible()
    assert page.evaluate("() => Object.values(sessionStorage)").count(key[0]) == 1
    assert page.evaluate("() => [...Object.values(localStorage), document.cookie]") == [""]
    assert key[0] not in page.content()
    other = page.context.new_page()
    other.goto(served.url)
    expect(other.get_by_role("dialog")).to_be_visible()


def test_wrong_key_is_asked_for_again(visit: Visit, key) -> None:
    page = visit.open()
    give(page, "edits_wrong")
    expect(page.get_by_text("The service does not know this key.")).to_be_visible()
    give(page, key[0])
    expect(page.locator(".lora-option").first).to_be_visible()


def test_who_has_no_key_is_not_asked_again_and_told_why_nothing_works(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("button", name="Not now").click()
    expect(page.get_by_role("alert")).to_contain_text("An API key is needed")
    page.get_by_role("link", name="History").click()
    expect(page.get_by_role("alert")).to_contain_text("An API key is needed")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_forgotten_key_is_asked_for_again(served: Served, visit: Visit, key) -> None:
    page = visit.open("#operation")
    give(page, key[0])
    page.get_by_role("button", name="Forget them now").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("() => sessionStorage['edits.key']") is None


def test_copied_code_reads_the_key_from_the_environment(served: Served, visit: Visit, key) -> None:
    result = finished_edit(served.url, **{"X-API-Key": key[0]})
    page = visit.open(f"#history/{result['request_id']}")
    give(page, key[0])
    for language in ("Python", "curl", "OpenAI client"):
        page.get_by_text(language, exact=True).click()
        code = page.get_by_label(f"{language} code")
        expect(code).to_contain_text("EDITS_API_KEY")
        assert key[0] not in str(code.text_content())
