"""The shipped default through HTTP, Ray and a browser: the trained miniature, its LoRA, and the page at `/`.

tests/engine/test_trained.py shows what the miniature can do, and tests/browser every part of the page.
"""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.editing import choose_lora, make_the_edit
from tests.browser.visit import CHROMIUM_OPTIONS, Visit, visiting
from tests.conftest import ROOT, THREADS
from tests.programs import chromium
from tests.service.conftest import Deployed, pixels

LORA = "my_lora_job/my_lora.safetensors"
PROMPT = "make it night"
# So many that there are previews of some of them, of an image that is small for the time that each takes.
STEPS, SIDE = 12, 512


@pytest.fixture(scope="module")
def trained(deploy) -> Deployed:
    models = [{"threads": THREADS, "device": "cpu"}]
    return deploy("trained", models=models, lora_root=str(ROOT / "samples/loras"))


def test_shipped_checkpoint_and_lora_are_served(trained: Deployed, make_body) -> None:
    made = []
    for multiplier in (0.0, 1.0):
        loras = [{"path": LORA, "network_multiplier": multiplier}]
        body = make_body(sample_steps=1, guidance_scale=1.0, loras=loras, output_format="png")
        made.append(pixels(trained.edit(body)[1]))
    assert not np.array_equal(*made)


@pytest.fixture
def visit(trained: Deployed) -> Iterator[Visit]:
    """The page of the service, below a path prefix."""
    url = str(trained.client.base_url).rstrip("/")
    # The browser ends with the test: as long as it runs, this thread has a running event loop.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_OPTIONS)
        with visiting(browser, url) as visit:
            yield visit
        browser.close()


def send(page: Page) -> None:
    """An edit of the sample photograph, sent."""
    page.locator("input[type=file]").first.set_input_files(ROOT / "samples/astronaut.jpg")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    choose_lora(page, "my_lora")
    page.get_by_text("Custom", exact=True).click()
    for label, value in (("Steps", STEPS), ("Guidance", 1), ("Width", SIDE), ("Height", SIDE)):
        page.get_by_label(label, exact=True).fill(str(value))
        page.get_by_label(label, exact=True).blur()
    expect(page.locator(".plan")).to_contain_text(f"{SIDE}x{SIDE} pixels, {STEPS} steps")
    make_the_edit(page)


def test_an_edit_happens_in_a_browser(visit: Visit, tmp_path) -> None:
    page = visit.open()
    send(page)
    preview = page.locator(".stage-box .preview")
    first = preview.get_attribute("src")
    page.wait_for_function(
        "src => ![src, undefined].includes(document.querySelector('.stage-box .preview')?.src)", arg=first
    )

    # A reload resumes, with the same request.
    page = visit.open()
    expect(page.locator(".job")).to_have_count(1)
    slider = page.get_by_role("slider", name="Boundary between the two images")
    expect(slider).to_be_visible(timeout=120_000)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuenow", "48")

    make_the_edit(page)
    page.locator("job-progress").get_by_role("button", name="Cancel").click()
    expect(page.locator("job-progress")).to_contain_text("Canceled")

    page.locator(".job", has_text="Finished").locator(".job-choose").click()
    page.get_by_role("link", name="Settings and code").click()
    expect(page.get_by_role("heading", name=PROMPT)).to_be_visible()
    # In one step, to spare time. tests/browser runs copied code as it is.
    code = str(page.get_by_label("Python code").text_content()).replace(f"steps={STEPS}", "steps=1")
    assert "steps=1," in code
    subprocess.run([sys.executable, "-"], input=code, text=True, cwd=tmp_path, check=True, timeout=120)
    assert PIL.Image.open(tmp_path / "edit.jpeg").size == (SIDE, SIDE)
