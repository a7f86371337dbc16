"""What browser tests do on the page: the steps that several of them share, and finished edits to look at."""

import io
from pathlib import Path
from typing import Any

import httpx2
import PIL.Image

from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import LORA

PROMPT = "make it night"
# Markup that runs if it is shown as such: an image that cannot be loaded, and what a browser would run for it.
MARKUP = "<img src=x onerror=\"document.title='run'\"><b>bold</b>&amp;<script>document.title='run'</script>"


def body_of(control: bytes | None = None, **prompt: object) -> dict[str, Any]:
    image = as_base64(control or as_png(noise_image(96, 64)))
    fields = {"prompt": PROMPT, "ctrl_img": image, "width": 96, "height": 64, "sample_steps": 3, "guidance_scale": 1}
    loras = [{"path": LORA, "network_multiplier": 0.75}]
    return {"model": "qwen_image_edit", "loras": loras, "output_format": "png", "prompts": [fields | prompt]}


def finished_edit(url: str, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
    """The result of a request that has ended."""
    answer = httpx2.post(f"{url}/v1/inference?wait=30", json=body or body_of(), headers=headers, timeout=60)
    result = answer.json()
    assert answer.status_code == 200, result
    assert result["finished_at"] is not None
    return dict(result)


def image_in(data: bytes | Path) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
