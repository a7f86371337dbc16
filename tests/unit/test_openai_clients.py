"""OpenAI's own clients, in Python and in JavaScript, over a real connection: what they ask for and what they raise."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.conftest import ROOT
from tests.programs import JAVASCRIPT, missing
from tests.unit.conftest import IMAGE, safetensors_bytes
from tests.unit.openai_calls import IMAGE_TEXT, LORA, PreviewingEditors, application_with_presets, data_url
from tests.unit.serving import Served, serving


@pytest.fixture(scope="module")
def server(shared_config) -> Iterator[Served]:
    application = application_with_presets(shared_config)
    application.editors.edit = PreviewingEditors(application).edit
    with serving(application) as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    """The server, whose editors have done nothing yet."""
    server.application.editors.tasks.clear()
    return server


@pytest.fixture
def sdk(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        yield client


def plan_of(served: Served) -> Any:
    return served.application.editors.tasks[-1].plan


def test_preset_as_a_model(served, sdk, control_png):
    answer = sdk.images.edit(model="house-style", prompt="[trigger] x", image=control_png, size="64x64")
    assert base64.b64decode(answer.data[0].b64_json) == IMAGE
    assert (answer.size, answer.quality, answer.output_format) == ("64x64", "high", "png")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    assert answer.usage.input_tokens_details.image_tokens == 0
    assert answer._request_id
    assert plan_of(served).prompt == "sks x"


@pytest.mark.parametrize("model", [openai.omit, "qwen_image_edit", "house-style"])
def test_preset_as_a_further_field(served, sdk, control_png, model):
    sdk.images.edit(model=model, prompt="x", image=control_png, extra_body={"preset": "house-style"})
    assert plan_of(served).preset == "house-style"


def test_loras_as_further_fields(served, sdk, control_png):
    lists = [[LORA | {"scale": 0.5}], [LORA | {"network_multiplier": 0.5}, LORA | {"network_multiplier": -1}]]
    for loras in (*lists, json.dumps(lists[0])):
        fields = {"loras": loras, "num_inference_steps": 3, "true_cfg_scale": 2.5, "negative_prompt": "rain"}
        sdk.images.edit(
            model="qwen_image_edit", prompt="x", image=control_png, extra_body=fields | {"seed": 7, "unknown": {"a": 1}}
        )
        plan = plan_of(served)
        assert (plan.steps, plan.guidance_scale, plan.negative_prompt, plan.seed) == (3, 2.5, "rain", 7)
        assert [use.scale for use in plan.adapters] == ([0.5] if loras is not lists[1] else [0.5, -1.0])


def test_two_images(served, sdk, control_png, tmp_path):
    (tmp_path / "a.png").write_bytes(control_png)
    with (tmp_path / "a.png").open("rb") as file:
        sdk.images.edit(model="two-images", prompt="x", image=[file, control_png])
    assert len(plan_of(served).control_images) == 2


def test_several_images(served, sdk, control_png):
    answer = sdk.images.edit(model="house-style", prompt="x", image=control_png, n=2, extra_body={"seed": 7})
    assert [image.b64_json for image in answer.data] == [IMAGE_TEXT] * 2
    assert sorted(task.plan.seed for task in served.application.editors.tasks) == [7, 8]


def test_address_of_a_image(sdk, control_png):
    answer = sdk.images.edit(model="house-style", prompt="x", image=control_png, response_format="url")
    assert answer.data[0].url.endswith("/images/0")


def test_stream_with_partial_images(sdk, control_png, monkeypatch):
    monkeypatch.setattr("serve_app.intake.openai.stream.PREVIEWS_S", 0.05)
    with sdk.images.edit(
        model="house-style",
        prompt="x",
        image=control_png,
        stream=True,
        partial_images=2,
        extra_body={"steps": 9},
    ) as stream:
        *partial, completed = stream
    assert [event.type for event in partial] == ["image_edit.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert (completed.type, base64.b64decode(completed.b64_json)) == ("image_edit.completed", IMAGE)
    assert (completed.output_format, completed.usage.output_tokens > 0) == ("png", True)


def test_generations(served, sdk):
    assert sdk.images.generate(model="posters", prompt="x").size == "512x768"
    [event] = sdk.images.generate(model="posters", prompt="x", stream=True)
    assert event.type == "image_generation.completed"


# What a call raises: the class of the exception, its `param` and `code`, and words of its message.
ERRORS: list[tuple[Callable[[OpenAI, bytes], Any], type[openai.APIError], str | None, str, str]] = [
    (
        lambda sdk, png: sdk.images.edit(model="flux", prompt="x", image=png),
        openai.BadRequestError,
        "model",
        "MODEL_NOT_FOUND",
        "house-style",
    ),
    (
        lambda sdk, png: sdk.images.edit(model="qwen_image_edit", prompt="x", image=png),
        openai.BadRequestError,
        "loras",
        "LORA_FILE_REQUIRED",
        "at least one LoRA",
    ),
    (
        lambda sdk, png: sdk.images.edit(model="house-style", prompt="x", image=b"junk"),
        openai.BadRequestError,
        "image",
        "CONTROL_IMAGE_INVALID",
        "not an image",
    ),
    (
        lambda sdk, png: sdk.images.edit(model="house-style", prompt="x", image=[png, png]),
        openai.BadRequestError,
        "image",
        "TOO_MANY_CONTROL_IMAGES",
        "takes 1",
    ),
    (
        lambda sdk, png: sdk.images.edit(model="house-style", prompt="x", image=png, mask=png),
        openai.BadRequestError,
        "mask",
        "INVALID_PARAMETER",
        "Masks are not supported",
    ),
    (
        lambda sdk, png: sdk.images.edit(model="house-style", prompt="x", image=png, background="transparent"),
        openai.BadRequestError,
        "background",
        "INVALID_PARAMETER",
        "Transparent",
    ),
    (
        lambda sdk, png: sdk.images.edit(model="house-style", prompt="x", image=png, quality="medium"),
        openai.BadRequestError,
        "quality",
        "QUALITY_UNAVAILABLE",
        "balanced",
    ),
    (
        lambda sdk, png: sdk.images.edit(
            model="house-style", prompt="x", image=png, extra_body={"loras": [LORA, LORA | {"scale": 1}]}
        ),
        openai.BadRequestError,
        "loras",
        "INVALID_PARAMETER",
        "as JSON",
    ),
    (
        lambda sdk, png: sdk.images.generate(model="house-style", prompt="x"),
        openai.BadRequestError,
        "model",
        "INVALID_PARAMETER",
        "/v1/images/edits",
    ),
    (
        lambda sdk, png: sdk.images.create_variation(image=png),
        openai.NotFoundError,
        None,
        "NOT_FOUND",
        "no such route",
    ),
    (
        lambda sdk, png: sdk.images.edit(model="house-style", prompt="fail", image=png),
        openai.InternalServerError,
        None,
        "OUT_OF_MEMORY",
        "does not fit",
    ),
    (
        lambda sdk, png: list(sdk.images.edit(model="house-style", prompt="fail", image=png, stream=True)),
        openai.APIError,
        None,
        "OUT_OF_MEMORY",
        "does not fit",
    ),
]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_message_of_an_error_is_readable(served, sdk, control_png):
    for call, kind, param, code, words in ERRORS:
        with pytest.raises(kind) as raised:
            call(sdk, control_png)
        assert (raised.value.code, raised.value.param) == (code, param)
        assert words in raised.value.message
    # An edit that has failed is not made again by the client's own repeats.
    assert len(served.application.editors.tasks) == 2


def test_client_that_loses_its_patience_repeats_the_call_and_gets_the_same_request(served, control_png):
    """Three calls of the client, of which the service makes one request."""
    served.hold_back()
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=1.5, max_retries=1) as sdk:
        with pytest.raises(openai.APITimeoutError):
            sdk.images.edit(model="house-style", prompt="x", image=control_png, extra_body={"steps": 1})
        served.let_go()
        again = {"x-stainless-retry-count": "2"}
        answer = sdk.images.edit(
            model="house-style", prompt="x", image=control_png, extra_body={"steps": 1}, extra_headers=again
        )
    assert answer.data[0].b64_json == IMAGE_TEXT
    assert len(served.application.editors.tasks) == 1


def run_in(folder: Path, *command: str) -> str:
    """The output of a command."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def node() -> str:
    """The program that runs JavaScript. Skips the test where it, or OpenAI's package, is missing."""
    if shutil.which("node") is None or not (JAVASCRIPT / "node_modules/openai").is_dir():
        missing("the packages of tests/javascript are not installed (`make test` does so, with nodejs and npm)")
    return "node"


@pytest.fixture
def documented(served: Served, tmp_path: Path) -> Callable[[str], str]:
    """The code of a language in the page about OpenAI's clients, for this server. Its files lie in `tmp_path`."""
    lora = Path(served.application.config.lora_root) / "my_lora_job/my_lora.safetensors"
    lora.parent.mkdir(exist_ok=True)
    lora.write_bytes(safetensors_bytes())
    (tmp_path / "samples").symlink_to(ROOT / "samples")

    def code(language: str) -> str:
        page = (ROOT / "docs/how-to/openai.md").read_text()
        blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        return "\n".join(blocks).replace("http://127.0.0.1:8000", served.url)

    return code


def test_documented_python_works(served, documented, tmp_path):
    run_in(tmp_path, sys.executable, "-c", documented("python"))
    assert (tmp_path / "edit.png").read_bytes() == IMAGE
    first, second = (task.plan for task in served.application.editors.tasks)
    assert (first.prompt, first.steps, first.width, first.height) == ("sks make it night", 8, 1024, 1024)
    assert second.preset == "house-style"


def test_documented_javascript_works(served, documented, tmp_path):
    (tmp_path / "node_modules").symlink_to(JAVASCRIPT / "node_modules")
    (tmp_path / "page.mjs").write_text(documented("javascript"))
    run_in(tmp_path, node(), "page.mjs")
    assert (tmp_path / "edit.png").read_bytes() == IMAGE
    assert plan_of(served).prompt == "sks make it night"


@pytest.fixture
def javascript(served: Served, control_png: bytes, tmp_path: Path, monkeypatch) -> dict[str, Any]:
    """What `tests/javascript/openai.mjs` has seen."""
    monkeypatch.setattr("serve_app.intake.openai.stream.PREVIEWS_S", 0.05)
    (tmp_path / "image.png").write_bytes(control_png)
    output = run_in(tmp_path, node(), str(JAVASCRIPT / "openai.mjs"), f"{served.url}/v1", "image.png")
    seen: dict[str, Any] = json.loads(output)
    return seen


def test_javascript_client(served, javascript):
    for name, count in (("preset", 1), ("loras", 1), ("json", 1), ("two", 1), ("several", 2), ("generated", 1)):
        assert [image["b64_json"] for image in javascript[name]["data"]] == [IMAGE_TEXT] * count
    plans = [task.plan for task in served.application.editors.tasks]
    assert [len(plan.control_images) for plan in plans[:4]] == [1, 1, 1, 2]
    assert [[use.scale for use in plan.adapters] for plan in plans[:3]] == [[1.0], [0.5], [0.5, 1.0]]
    assert (plans[0].prompt, plans[1].seed) == ("sks x", 7)
    assert javascript["preset"]["size"] == "64x64"
    assert javascript["ids"] == [True, True]
    types = [event["type"] for event in javascript["stream"]]
    assert types == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert javascript["stream"][-1]["b64_json"] == IMAGE_TEXT
    expected = [
        ("BadRequestError", 400, "MODEL_NOT_FOUND", "model", "house-style"),
        ("BadRequestError", 400, "INVALID_PARAMETER", "mask", "Masks are not supported"),
        ("BadRequestError", 400, "CONTROL_IMAGE_INVALID", "image", "not an image"),
        ("BadRequestError", 400, "INVALID_PARAMETER", "model", "/v1/images/edits"),
        ("InternalServerError", 500, "OUT_OF_MEMORY", None, "does not fit"),
        ("APIError", None, "OUT_OF_MEMORY", None, "does not fit"),
    ]
    for error, (kind, status, code, param, words) in zip(javascript["errors"], expected, strict=True):
        assert (error["kind"], error.get("status"), error["code"], error["param"]) == (kind, status, code, param)
        assert words in error["message"]


def test_url_in_json_is_what_other_clients_send(served, sdk, control_png):
    answer = sdk.post(
        "/images/edits",
        cast_to=openai.types.ImagesResponse,
        body={"model": "house-style", "prompt": "x", "images": [{"image_url": data_url(control_png)}]},
    )
    assert answer.data[0].b64_json == IMAGE_TEXT
