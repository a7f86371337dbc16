"""The view History: earlier requests, their settings and images used again, and as code that runs."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import PIL.PngImagePlugin
import pytest
from playwright.sync_api import Browser, Page, expect

from serve_app.errors import OutOfMemory
from tests.browser.finished import PROMPT, body_of, finished_edit, image_in
from tests.browser.visit import Visit, serious_findings, visiting
from tests.conftest import as_png, noise_image
from tests.unit.conftest import LORA
from tests.unit.serving import Served

CODE_S = 60


def assert_same_edits(served: Served) -> None:
    """Two edits were made, with the same effective values; why they have them may differ."""
    first, second = (task.plan for task in served.application.editors.tasks)
    assert second == replace(first, why=second.why)


def open_result(visit: Visit, result: dict[str, Any]) -> Page:
    page = visit.open(f"#history/{result['request_id']}")
    expect(page.get_by_role("button", name="Use these settings")).to_be_visible()
    return page


def test_gallery_shows_each_request_with_its_image_and_prompt(served: Served, visit: Visit) -> None:
    finished_edit(served.url)
    page = visit.open("#history")
    card = page.get_by_role("listitem").filter(has_text=PROMPT)
    expect(card).to_have_count(1)
    image = card.locator("img")
    expect(image).to_be_visible()
    page.wait_for_function("image => image.complete && image.naturalWidth === 96", arg=image.element_handle())
    assert serious_findings(page) == []
    card.get_by_role("link").click()
    expect(page.get_by_role("heading", name=PROMPT)).to_be_visible()
    assert serious_findings(page) == []


def test_filters_and_pages_come_from_the_service(served: Served, visit: Visit) -> None:
    for number in range(25):
        httpx2.post(f"{served.url}/v1/inference", json=body_of(prompt=f"edit number {number}"))
    finished_edit(served.url, body_of(prompt="edit number 25"))
    page = visit.open("#history")
    cards = page.get_by_role("list", name="Requests").get_by_role("listitem")
    expect(cards).to_have_count(24)
    page.get_by_role("button", name="Show more").click()
    expect(cards).to_have_count(26)
    expect(cards.first).to_contain_text("edit number 25")
    page.get_by_label("Status").select_option("Failed")
    expect(cards).to_have_count(0)
    page.get_by_role("button", name="Show all").click()
    expect(cards).to_have_count(24)
    page.get_by_label("LoRA", exact=True).fill(LORA)
    page.get_by_label("LoRA", exact=True).press("Enter")
    expect(cards).to_have_count(24)
    page.get_by_label("LoRA", exact=True).fill("another.safetensors")
    page.get_by_label("LoRA", exact=True).press("Enter")
    expect(page.get_by_text("No request fits these filters.")).to_be_visible()


def test_without_a_history_the_page_says_why(browser: Browser, served: Served) -> None:
    with visiting(browser, served.url.replace("127.0.0.1", "host.localhost")) as visit:
        visit.expect("403")
        page = visit.open("#history")
        expect(page.get_by_role("alert")).to_contain_text("no API keys")


def test_settings_of_a_result_make_the_same_edit_again(served: Served, visit: Visit) -> None:
    control = as_png(noise_image(80, 120, seed=5))
    body = body_of(
        control, prompt="[trigger] as a poster", neg="fog", seed=123, trigger_word="sks", sampler="lightning"
    )
    result = finished_edit(served.url, body | {"profile": "trainer", "vae_tiling": True})
    page = open_result(visit, result)
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("sks as a poster")
    page.get_by_role("button", name="Make the edit").click()
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    assert_same_edits(served)
    page.get_by_role("link", name="Settings and code").click()
    expect(page.get_by_role("heading", name="sks as a poster")).to_be_visible()


def test_result_becomes_the_input_of_the_next_edit(served: Served, visit: Visit) -> None:
    result = finished_edit(served.url)
    page = open_result(visit, result)
    page.get_by_role("button", name="Use as input").click()
    page.get_by_label("Prompt", exact=True).fill("more of it")
    expect(page.get_by_text("96x64", exact=True)).to_be_visible()
    assert page.evaluate("() => location.hash") == "#edit"


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
def test_downloaded_png_has_the_record_and_restores_its_settings(
    served: Served, visit: Visit, tmp_path: Path, output_format: str
) -> None:
    result = finished_edit(served.url, body_of(prompt="naïve 日本 😀", seed=99) | {"output_format": output_format})
    page = open_result(visit, result)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download PNG").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    image = image_in(file)
    assert (image.format, image.size) == ("PNG", (96, 64))
    record = json.loads(image.text["effective"])
    assert record == result["metadata"]["effective"][0]

    page.goto(f"{served.url}/#history")
    page.get_by_label("Restore from a PNG").set_input_files(file)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("naïve 日本 😀")
    page.get_by_role("button", name="Make the edit")
    assert page.evaluate("() => JSON.parse(sessionStorage['edits.draft']).seed") == 99


@pytest.mark.parametrize("text_kind", ["zTXt", "iTXt"])
def test_compressed_texts_of_a_png_are_read(served: Served, page: Page, tmp_path: Path, text_kind: str) -> None:
    result = finished_edit(served.url)
    texts = PIL.PngImagePlugin.PngInfo()
    record = json.dumps(result["metadata"]["effective"][0])
    if text_kind == "zTXt":
        texts.add_text("effective", record, zip=True)
    else:
        texts.add_itxt("effective", record, zip=True)
    file = tmp_path / "edit.png"
    noise_image(8, 8).save(file, pnginfo=texts)
    page.goto(f"{served.url}/#history")
    page.get_by_label("Restore from a PNG").set_input_files(file)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)


def test_a_png_without_a_record_is_refused_in_a_sentence(served: Served, visit: Visit, tmp_path: Path) -> None:
    page = visit.open("#history")
    broken = {
        "plain.png": as_png(noise_image(8, 8)),
        "text.png": b"no image",
        "cut.png": as_png(noise_image(8, 8))[:20],
        "odd.png": with_record("[1, 2]"),
        "null.png": with_record('{"request": {"prompts": [{"prompt": 7}]}}'),
    }
    for name, content in broken.items():
        file = tmp_path / name
        file.write_bytes(content)
        page.get_by_label("Restore from a PNG").set_input_files(file)
        expect(page.get_by_role("alert")).to_contain_text("This file carries no settings")


def with_record(text: str) -> bytes:
    texts = PIL.PngImagePlugin.PngInfo()
    texts.add_text("effective", text)
    buffer = io.BytesIO()
    noise_image(8, 8).save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def code_on(page: Page, language: str) -> str:
    page.get_by_text(language, exact=True).click()
    code = page.locator("copy-code code")
    expect(page.get_by_label(f"{language} code")).to_be_visible()
    return str(code.text_content())


TRICKY = 'it\'s "night"\n$HOME `id` \\ EOF 日本 ${x} {y}'


@pytest.mark.parametrize("language", ["Python", "OpenAI client"])
def test_copied_python_runs_and_makes_the_same_edit(
    served: Served, visit: Visit, tmp_path: Path, language: str
) -> None:
    result = finished_edit(served.url, body_of(prompt=TRICKY, neg="'''fog", seed=7))
    page = open_result(visit, result)
    run(code_on(page, language), [sys.executable, "-"], tmp_path)
    assert image_in(tmp_path / "edit.png").size == (96, 64)
    assert_same_edits(served)


def test_copied_curl_runs_and_makes_the_same_edit(served: Served, visit: Visit, tmp_path: Path) -> None:
    result = finished_edit(served.url, body_of(prompt=TRICKY, neg="'''fog", seed=7))
    page = open_result(visit, result)
    answer = json.loads(run(code_on(page, "curl"), ["bash", "-s"], tmp_path))
    assert answer["status"] == "succeeded"
    assert_same_edits(served)


def run(code: str, command: list[str], folder: Path) -> str:
    environment = os.environ | {"EDITS_URL": "http://127.0.0.1:1"}
    done = subprocess.run(
        command, input=code, cwd=folder, env=environment, capture_output=True, text=True, timeout=CODE_S, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


def test_code_is_copied_to_the_clipboard(browser: Browser, served: Served) -> None:
    result = finished_edit(served.url)
    with visiting(browser, served.url, permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = open_result(visit, result)
        page.get_by_role("button", name="Copy", exact=True).click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("() => navigator.clipboard.readText()") == page.locator("copy-code code").text_content()


def test_request_that_failed_says_why(served: Served, visit: Visit) -> None:
    served.application.editors.errors.append(OutOfMemory("this edit does not fit on the device"))
    result = finished_edit(served.url)
    page = visit.open("#history")
    expect(page.get_by_role("list", name="Requests")).to_contain_text("does not fit on the device")
    visit.open(f"#history/{result['request_id']}")
    expect(page.get_by_text("does not fit on the device")).to_be_visible()


def test_a_request_that_is_gone_says_so(visit: Visit) -> None:
    visit.expect("404")
    page = visit.open(f"#history/{'0' * 32}")
    expect(page.get_by_role("alert")).to_contain_text("There is no request")


def test_request_that_is_not_finished_is_shown_when_it_is(served: Served, visit: Visit) -> None:
    served.hold_back()
    request_id = httpx2.post(f"{served.url}/v1/inference", json=body_of()).json()["request_id"]
    page = visit.open(f"#history/{request_id}")
    expect(page.get_by_text("This request is not finished")).to_be_visible()
    served.let_go()
    expect(page.get_by_role("button", name="Use these settings")).to_be_visible()
