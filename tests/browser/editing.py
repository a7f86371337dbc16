"""What the tests of the view Edit do on the page."""

import io
from pathlib import Path

import PIL.Image
from playwright.sync_api import Page, expect

from tests.unit.conftest import LORA, safetensors_bytes
from tests.unit.serving import Served

# A file name and a text that would change the page if they were taken for markup.
MARKUP = "<img src=x onerror=document.title='taken'><b>bold</b>"


def image_bytes(width: int = 96, height: int = 64, color: tuple[int, int, int] = (200, 120, 40)) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def choose_image(page: Page, name: str = "photo.png", content: bytes | None = None) -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": content or image_bytes()}
    page.locator("drop-zone input[type=file]").first.set_input_files([file])


def drop_image(page: Page, content: bytes | None = None) -> None:
    """Drop a file on the page, as a file manager does."""
    data = page.evaluate_handle(
        """([bytes, name]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
          return data;
        }""",
        [list(content or image_bytes()), "dropped.png"],
    )
    for event in ("dragover", "drop"):
        page.dispatch_event(".edit", event, {"dataTransfer": data})


def choose_lora(page: Page, name: str = "lora") -> None:
    page.locator(".lora-option", has=page.get_by_text(name, exact=True)).click()


def fill_in(page: Page, prompt: str = "make it night") -> None:
    """An edit that is ready to be sent, in few steps."""
    drop_image(page)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    choose_lora(page)
    page.get_by_label("Steps", exact=True).fill("4")
    page.get_by_label("Steps", exact=True).blur()
    expect(page.locator(".plan")).to_contain_text("4 steps")


def make_the_edit(page: Page) -> None:
    page.get_by_role("button", name="Make the edit").click()


def held_edit(served: Served, page: Page) -> None:
    """An edit that waits after its second step, of which its preview is shown: steps are stored a little later."""
    served.hold_back()
    served.application.editors.hold_after = 2
    fill_in(page)
    make_the_edit(page)
    expect(page.locator(".stage-box .preview")).to_be_visible()
    expect(page.locator("job-progress")).to_contain_text("of 4")


def write_lora(lora_root: str, path: str = LORA, **metadata: str) -> None:
    file = Path(lora_root) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(safetensors_bytes(metadata=metadata))
