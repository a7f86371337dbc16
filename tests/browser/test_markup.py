"""Texts full of markup are shown as texts, wherever they come from."""

import json
from collections.abc import Callable

import httpx2
import PIL.PngImagePlugin
import pytest
from playwright.sync_api import Page, expect

from serve_app.errors import UnusableResult
from tests.browser.editing import choose_image, write_lora
from tests.browser.finished import MARKUP, body_of, finished_edit
from tests.browser.visit import Visit
from tests.conftest import noise_image
from tests.unit.conftest import LORA
from tests.unit.serving import Served

# File names have no slash.
NAME = "<img src=x onerror=document.title='run'><b>bold<b>"


def assert_is_text(page: Page, text: str) -> None:
    """The text is on the page, and nothing of it has become an element."""
    expect(page.get_by_text(text).first).to_be_visible()
    assert page.locator("img[src='x'], main b, main script").count() == 0
    assert page.title() != "run"


def test_prompt(served: Served, visit: Visit) -> None:
    result = finished_edit(served.url, body_of(prompt=MARKUP, neg=MARKUP))
    page = visit.open("#history")
    assert_is_text(page, MARKUP)
    visit.open(f"#history/{result['request_id']}")
    assert_is_text(page, MARKUP)
    for language in ("curl", "OpenAI client", "Python"):
        page.get_by_text(language, exact=True).click()
        assert_is_text(page, "onerror")
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(MARKUP)
    page.get_by_role("button", name="Make the edit").click()
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    assert_is_text(page, MARKUP)


def test_file_name(visit: Visit) -> None:
    page = visit.open()
    choose_image(page, f"{NAME}.png")
    assert_is_text(page, f"{NAME}.png")


@pytest.fixture
def write_tricky_lora(served: Served) -> Callable[[], str]:
    """Write a LoRA whose path and metadata are markup; the path."""

    def write() -> str:
        path = f"{NAME}/{NAME}.safetensors"
        software = {"name": MARKUP, "version": MARKUP}
        tags = {f"1_{MARKUP}": {f"1_{MARKUP}": 1}}
        metadata = {"software": json.dumps(software), "ss_tag_frequency": json.dumps(tags)}
        write_lora(served.application.config.lora_root, path, **metadata)
        return path

    return write


def test_path_trigger_word_and_trainer_of_a_lora(visit: Visit, write_tricky_lora: Callable[[], str]) -> None:
    write_tricky_lora()
    page = visit.open()
    assert_is_text(page, NAME)
    # The trigger word and the trainer.
    assert_is_text(page, f"trigger “{MARKUP}”")
    page.locator(".lora-option", has_text=NAME).click()
    assert_is_text(page, NAME)
    page.get_by_label("Prompt", exact=True).fill(f"[trigger] {MARKUP}")
    choose_image(page, f"{NAME}.png")
    expect(page.locator(".plan")).to_contain_text("1 LoRA")
    assert_is_text(page, NAME)


def test_lora_of_an_earlier_edit(served: Served, visit: Visit, write_tricky_lora: Callable[[], str]) -> None:
    loras = [{"path": write_tricky_lora()}]
    result = finished_edit(served.url, body_of() | {"loras": loras})
    page = visit.open("#history")
    assert_is_text(page, NAME)
    visit.open(f"#history/{result['request_id']}")
    assert_is_text(page, NAME)


def test_error_message(served: Served, visit: Visit) -> None:
    served.application.editors.errors.append(UnusableResult(f"broken {MARKUP}"))
    result = finished_edit(served.url)
    page = visit.page
    for view in ("#history", f"#history/{result['request_id']}", "#operation"):
        visit.open(view)
        assert_is_text(page, f"broken {MARKUP}")


def test_grid_of_a_sweep(served: Served, visit: Visit, write_tricky_lora: Callable[[], str]) -> None:
    prompts = [MARKUP, f"{MARKUP} again"]
    base = body_of(neg=MARKUP)
    # The title of a cell is its error.
    served.application.editors.errors.append(UnusableResult(f"broken {MARKUP}"))
    axes = {"checkpoints": [LORA, write_tricky_lora()], "prompts": prompts}
    answer = httpx2.post(f"{served.url}/v1/sweeps", json={"base": base, "axes": axes})
    assert answer.status_code == 200, answer.text
    sweep = answer.json()["sweep_id"]
    page = visit.open("#sweeps")
    assert_is_text(page, "4 images")
    visit.open(f"#sweeps/{sweep}")
    expect(page.locator(".cell")).to_have_count(3)
    expect(page.get_by_title(f"prompt 0: broken {MARKUP}")).to_have_text("failed")
    assert_is_text(page, NAME)
    assert_is_text(page, MARKUP)


def test_record_of_a_png_from_anybody(visit: Visit, tmp_path) -> None:
    page = visit.open("#history")
    texts = PIL.PngImagePlugin.PngInfo()
    request = {
        "model": MARKUP,
        "profile": MARKUP,
        "output_format": MARKUP,
        "loras": [{"path": MARKUP}],
        "prompts": [{"prompt": MARKUP, "neg": MARKUP}],
    }
    texts.add_text("effective", json.dumps({"request": request}))
    file = tmp_path / "edit.png"
    noise_image(8, 8).save(file, pnginfo=texts)
    visit.expect("status of 4")
    page.get_by_label("Restore from a PNG").set_input_files(file)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(MARKUP)
    assert page.locator("img[src='x'], main b, main script").count() == 0
    assert page.title() != "run"


def test_address_of_a_view(visit: Visit) -> None:
    visit.expect("status of 404")
    page = visit.open(f"#history/{NAME}")
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.locator("img[src='x'], main b").count() == 0
    assert page.title() != "run"
