"""The view Sweeps: a grid of images that appear as they are finished."""

import re

from playwright.sync_api import Page, Route, expect

from serve_app.errors import UnusableResult
from tests.browser.editing import MARKUP, drop_image, fill_in, write_lora
from tests.browser.visit import Visit, serious_findings
from tests.unit.conftest import LORA, SHARES_AN_APPLICATION
from tests.unit.serving import Served

# The files of a sweep: the name of the link, the suffix, and how the file begins.
FILES = (("Contact sheet", "png", b"\x89PNG"), ("Table", "csv", b""), ("Archive", "zip", b"PK"))

pytestmark = SHARES_AN_APPLICATION


def test_a_sweep_is_counted_started_watched_compared_and_used_again(served: Served, page: Page) -> None:
    write_lora(served.application.config.lora_root, "job/other.safetensors", name="another file")
    fill_in(page)
    page.get_by_role("link", name="Sweeps").click()
    expect(page.get_by_role("button", name="Make 3 images")).to_be_enabled()
    page.locator(".lora-option", has_text="other").click()
    expect(page.get_by_label("LoRAs: one path")).to_have_value(f"{LORA}\njob/other.safetensors")
    page.get_by_label("Strengths").fill("0.5 1")
    page.get_by_label("Seeds").fill("42, 43")
    page.get_by_label("also without a LoRA").check()
    assert serious_findings(page) == []
    served.hold_back()
    page.get_by_role("button", name="Make 10 images").click()
    expect(page.locator(".cell-state", has_text="waiting").first).to_be_visible()
    assert page.locator("thead th").all_inner_texts() == [
        "without a LoRA",
        "lora at 0.5",
        "lora at 1",
        "other at 0.5",
        "other at 1",
    ]
    served.let_go()
    expect(page.locator(".cell")).to_have_count(10)
    page.get_by_role("button", name="seed 42, without a LoRA").click()
    expect(page.get_by_role("img", name="The chosen image")).to_be_visible()
    page.get_by_role("button", name="seed 43, other at 0.5").click()
    table = page.get_by_role("table", name="What differs")
    expect(table.get_by_role("row", name="Seed")).to_contain_text("4243")
    expect(table.get_by_role("row", name="LoRAs")).to_contain_text("job/other.safetensors at 0.5")
    assert serious_findings(page) == []
    page.get_by_role("button", name="seed 42, without a LoRA").click()
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("43")
    expect(page.get_by_role("spinbutton", name="Strength of other")).to_have_value("0.5")
    page.get_by_role("link", name="Sweeps").click()
    expect(page.locator(".sweeps li")).to_contain_text(["10 images, 10 finished, succeeded"])


def test_a_sweep_is_canceled_and_its_missing_images_are_made_later(served: Served, visit: Visit, page: Page) -> None:
    fill_in(page)
    page.get_by_role("link", name="Sweeps").click()
    served.hold_back()
    page.get_by_role("button", name="Make 3 images").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".cell-state", has_text="canceled")).to_have_count(3)
    served.let_go()
    page.get_by_role("button", name="Make the missing images").click()
    expect(page.locator(".cell")).to_have_count(3)


def test_files_of_a_sweep_are_a_click_away(served: Served, page: Page) -> None:
    fill_in(page)
    page.get_by_role("link", name="Sweeps").click()
    page.get_by_text("Profiles").click()
    page.get_by_label("reference").check()
    page.get_by_label("trainer", exact=True).check()
    page.get_by_role("button", name="Make 6 images").click()
    expect(page.locator(".cell")).to_have_count(6)
    for name, suffix, beginning in (
        ("Contact sheet", "png", b"\x89PNG"),
        ("Table", "csv", b""),
        ("Archive", "zip", b"PK"),
    ):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.suggested_filename.endswith(f".{suffix}")
        content = download.value.path().read_bytes()
        assert content.startswith(beginning)
        assert len(content) > 100


def test_markup_in_a_sweep_is_text(served: Served, page: Page) -> None:
    served.application.editors.errors.append(UnusableResult(f"broken {MARKUP}"))
    fill_in(page, prompt=MARKUP)
    page.get_by_role("link", name="Sweeps").click()
    page.get_by_label("Strengths").fill("1")
    page.get_by_label("Prompts").fill(f"{MARKUP}\nmake it day")
    page.get_by_role("button", name="Make 2 images").click()
    expect(page.locator("tbody th").first).to_have_text(MARKUP)
    expect(page.locator(".cell-state", has_text="failed")).to_have_attribute("title", re.compile("broken <img"))
    assert page.locator("img[src=x], main b").count() == 0


def test_an_image_that_is_still_uploaded_is_waited_for(page: Page, visit: Visit) -> None:
    held: list[Route] = []
    page.route("**/v1/uploads", lambda route: held.append(route))
    visit.open("#edit")
    with page.expect_request("**/v1/uploads"):
        drop_image(page)
    page.get_by_role("link", name="Sweeps").click()
    expect(page.get_by_role("link", name="Choose an image first")).to_be_visible()
    held[0].continue_()
    expect(page.get_by_role("form", name="A new sweep")).to_be_visible()


def test_wrong_numbers_and_a_missing_image_are_said(page: Page, visit: Visit) -> None:
    visit.open("#sweeps")
    page.get_by_role("link", name="Choose an image first").click()
    drop_image(page)
    page.get_by_label("Prompt", exact=True).fill("make it night")
    page.get_by_role("link", name="Sweeps").click()
    page.locator(".lora-option").first.click()
    page.get_by_label("Seeds").fill("42, x")
    expect(page.get_by_role("alert")).to_have_text("Seeds: x is not a number. Separate the numbers by commas.")
