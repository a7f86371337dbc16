"""The screenshots of the playground in the documentation, from the real service with the trained miniature.

    python -m tools.screenshots

It starts the service as `edits-server demo` does, edits the sample photograph in Chromium, which has to be installed,
and writes the images of docs/playground.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from serve_app.commands.demo import service, wait_until_ready, write_config
from serve_app.commands.ports import LOOPBACK, free_port
from serve_app.models.registry import MODELS

FOLDER = Path("docs/playground")
PHOTOGRAPH = Path("samples/astronaut.jpg")
MODEL = "qwen_image_edit"
LORAS = ("my_lora", "glazed_tiles")
# Instructions that the miniature was trained on.
PROMPTS = ("make it night", "invert the colours")
STEPS = 8
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}
QUALITY = 82
# An edit of the miniature takes seconds, on a busy machine a minute.
PATIENCE_MS = 180_000


@contextmanager
def page_of(browser: Browser, url: str, **options: object) -> Iterator[Page]:
    """A fresh session with the page open."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{url}/")
    yield page
    context.close()


def save(page: Page, name: str) -> None:
    page.screenshot(path=FOLDER / f"{name}.jpg", type="jpeg", quality=QUALITY)


def fill_in(page: Page, prompt: str, lora: str) -> None:
    page.locator("input[type=file]").first.set_input_files(PHOTOGRAPH)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.locator(".lora-option", has=page.get_by_text(lora, exact=True)).click()
    for label, value in (("Steps", STEPS), ("Guidance", 1)):
        page.get_by_label(label, exact=True).fill(str(value))
        page.get_by_label(label, exact=True).blur()
    page.locator(".plan", has_text=f"{STEPS} steps").wait_for()


def make(page: Page) -> None:
    page.get_by_role("button", name="Make the edit").click()
    wait_for_result(page)


def wait_for_result(page: Page) -> None:
    """Wait until input and result are loaded: until then, the input shows where the result will be."""
    page.locator("compare-images .after img").wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('compare-images img')].every((each) => each.complete && each.naturalWidth)"
    )


def take(browser: Browser, url: str) -> None:
    """Make edits, and a screenshot of each view."""
    with page_of(browser, url, viewport=WIDE) as page:
        fill_in(page, PROMPTS[0], LORAS[0])
        page.get_by_role("button", name="Make the edit").click()
        page.locator(".stage-box .preview").wait_for()
        save(page, "watch")
        wait_for_result(page)
        page.wait_for_load_state("networkidle")
        save(page, "edit")
        page.get_by_role("link", name="Settings and code").click()
        page.locator("copy-code").wait_for()
        page.wait_for_load_state("networkidle")
        save(page, "result")
    with page_of(browser, url, viewport=PHONE, color_scheme="dark", device_scale_factor=1.5, has_touch=True) as page:
        fill_in(page, PROMPTS[1], LORAS[1])
        make(page)
        page.locator("compare-images").scroll_into_view_if_needed()
        save(page, "phone")
    with page_of(browser, url, viewport=WIDE) as page:
        for view, shown in (("history", ".history-card img"), ("operation", "tbody tr")):
            page.goto(f"{url}/#{view}")
            page.locator(shown).first.wait_for()
            page.wait_for_load_state("networkidle")
            save(page, view)


def main() -> None:
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("Chromium is not installed: install Debian's package `chromium`")
    FOLDER.mkdir(exist_ok=True)
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    Path("out").mkdir(exist_ok=True)
    with service(write_config(port, MODELS[MODEL])) as process, sync_playwright() as playwright:
        wait_until_ready(url, process)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        take(browser, url)
        browser.close()


if __name__ == "__main__":
    main()
