"""The clients and examples of docs/how-to/clients.md and of the READMEs work, as they stand there."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from serve_app.config import AppConfig, AuthConfig, read_ingress_settings
from serve_app.intake.keys import new_key
from tests.conftest import ROOT, as_png, noise_image
from tests.programs import JAVASCRIPT, node
from tests.unit.chaos import Proxy
from tests.unit.conftest import IMAGE, Application, safetensors_bytes
from tests.unit.serving import Served, serving
from tests.unit.test_client_chaos import PacedEditors

PAGE = ROOT / "docs/how-to/clients.md"
# Where the examples expect the service.
URL = "http://127.0.0.1:8000"
PRESET = {"model": "qwen_image_edit", "loras": [{"path": "job/lora.safetensors"}], "sample_steps": 2}
LORAS = ("my_lora_job/my_lora.safetensors", "my_job/my_job.safetensors")


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def examples() -> Iterator[tuple[str, str]]:
    """The Python examples that use the client, with their page."""
    for page in (PAGE, ROOT / "README.md", ROOT / "clients/python/README.md"):
        for block in blocks(page, "python"):
            if re.search("^from edits_client|client.submit", block, re.MULTILINE) and "verify_webhook" not in block:
                yield str(page.relative_to(ROOT)), block


@pytest.fixture(scope="module")
def served(shared_config: AppConfig) -> Iterator[Served]:
    """An application with the LoRAs and the preset of the examples."""
    for name in LORAS:
        lora = Path(shared_config.lora_root, name)
        lora.parent.mkdir()
        lora.write_bytes(safetensors_bytes())
    application = Application(shared_config)
    application.service.reconfigure(*read_ingress_settings({"presets": {"house-style": PRESET}}))
    with serving(application) as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the photographs that examples name."""
    monkeypatch.chdir(tmp_path)
    for name in ("samples/astronaut.jpg", "photo.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(as_png(noise_image(96, 64)))
    return tmp_path


def test_there_are_examples():
    assert [page for page, _ in examples()] == [
        *["docs/how-to/clients.md"] * 4,
        "README.md",
        *["clients/python/README.md"] * 3,
    ]


@pytest.mark.parametrize("number", range(8))
def test_python_example_runs(served, folder, number):
    _, code = list(examples())[number]
    if "client = " not in code and "asyncio" not in code:
        # It goes on from the block before it.
        code = f"from edits_client import Client, Lora\nclient = Client('{URL}')\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code.replace(URL, served.url)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    if "night.png" in code:
        assert (folder / "night.png").read_bytes() == IMAGE


async def test_javascript_client(config, tmp_path, control_png):
    key, sha256 = new_key()
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"tenants": {"acme": [sha256]}}))
    application = Application(
        config.model_copy(update={"auth": AuthConfig(keys_file=str(tmp_path / "keys.yaml"))}), PacedEditors
    )
    application.editors.pause = 0.03
    (tmp_path / "edits.mjs").write_text(blocks(PAGE, "javascript")[0])
    shutil.copy(JAVASCRIPT / "edit.mjs", tmp_path)
    (tmp_path / "photo.png").write_bytes(control_png)
    with serving(application) as served:
        address = urlsplit(served.url)
        proxy = Proxy(str(address.hostname), int(address.port or 0), 1, {"answer cut": 90, "refused": 5})
        proxy.cuts = 1500, 6000
        async with proxy.running():
            arguments = (served.url, proxy.url, key, str(tmp_path / "photo.png"))
            done = await asyncio.create_subprocess_exec(
                node(), str(tmp_path / "edit.mjs"), *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            out, errors = await asyncio.wait_for(done.communicate(), 120)
    assert errors.decode() == ""
    assert proxy.happened["answer cut"] > 1
    assert json.loads(out) == {
        "images": [0, 1, 2, 3],
        "ends": 1,
        "end": ["succeeded", 4],
        "file": IMAGE.decode(),
        "again": "succeeded",
        "canceled": "canceled",
        "errors": [
            ["LORA_NOT_FOUND", True, ["lora_path"]],
            ["HTTP_422", True, []],
            ["REQUEST_NOT_FOUND", True, ["request_id"]],
            ["UNAUTHORIZED", True, []],
        ],
    }


def test_javascript_example(served, folder):
    client, example = blocks(PAGE, "javascript")
    (folder / "edits.mjs").write_text(client)
    (folder / "example.mjs").write_text(example.replace(URL, served.url))
    done = subprocess.run([node(), "example.mjs"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"/v1/requests/[0-9a-f]{32}/images/0\n$", done.stdout)
