"""The view Edit shows the texts of files, presets and errors as texts, however much they look like markup."""

import json

import pytest
from playwright.sync_api import Page, expect

from tests.browser.editing import MARKUP, choose_image, make_the_edit, write_lora
from tests.browser.visit import Visit
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.serving import Served

pytestmark = SHARES_AN_APPLICATION

LORA_NAME = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(autouse=True)
def nothing_is_taken_for_markup(page: Page) -> None:
    """After each test: no element of the page comes from a text."""
    yield
    assert page.locator("img[src=x], b").count() == 0
    assert "taken" not in page.title()


def test_paths_and_metadata_of_loras(served: Served, visit: Visit) -> None:
    software = json.dumps({"name": MARKUP, "version": MARKUP})
    metadata = {"ss_tag_frequency": json.dumps({f"1_{MARKUP}": {}}), "software": software}
    write_lora(served.application.config.lora_root, f"{LORA_NAME}.safetensors", **metadata)
    page = visit.open()
    option = page.locator(".lora-option", has_text="onerror")
    expect(option.locator(".lora-title")).to_have_text(LORA_NAME)
    expect(option).to_contain_text(f"trigger “{MARKUP}”")
    option.click()
    expect(page.locator(".lora")).to_contain_text(f"{MARKUP} {MARKUP}")
    page.get_by_role("button", name="Add its trigger word").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("[trigger]")
    choose_image(page)
    expect(page.locator(".plan")).to_contain_text(f"prompt: {MARKUP}")


def test_errors_of_the_service(visit: Visit, page: Page) -> None:
    visit.expect("status of 400")
    error = {"detail": {"error": {"code": "INVALID_PARAMETER", "message": MARKUP, "details": {}}}}
    page.route("**/v1/explain", lambda route: route.fulfill(status=400, body=json.dumps(error)))
    # Another sentence than the explanation's: the same one is shown once.
    refused = {"detail": {"error": {**error["detail"]["error"], "message": f"Refused: {MARKUP}"}}}
    page.route("**/v1/inference", lambda route: route.fulfill(status=400, body=json.dumps(refused)))
    choose_image(page)
    page.get_by_label("Prompt", exact=True).fill("make it night")
    page.locator(".lora-option").first.click()
    expect(page.locator("plan-summary .problem")).to_contain_text(MARKUP)
    make_the_edit(page)
    expect(page.locator(".panel-foot > .problem")).to_contain_text(f"Refused: {MARKUP}")


def test_presets(page: Page, visit: Visit) -> None:
    preset = {"name": MARKUP, "model": "qwen_image_edit", "loras": [], "problem": {"code": "X", "message": MARKUP}}
    page.route("**/v1/presets", lambda route: route.fulfill(json={"presets": [preset]}))
    visit.open()
    expect(page.locator("model-field option", has_text=MARKUP)).to_have_count(1)
    page.get_by_text("1 preset cannot be used").click()
    expect(page.locator("model-field p")).to_contain_text(f"{MARKUP}: {MARKUP}")
