"""`effective.request` through the service with a real engine: sent back, it makes the image bit for bit."""

import hashlib
import io
import json
from collections.abc import AsyncGenerator

import PIL.Image
import pytest
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config import MINIATURE_RANDOM, SQLITE_PREFIX, AppConfig, IngressSettings, ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.intake.service import Service
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone, EditEvent, EditTask, StepDone
from tests.conftest import LORAS, THREADS, as_base64, as_png, noise_image

LORA = "my_lora_job/my_lora.safetensors"
IMAGES = [as_base64(as_png(noise_image(*size))) for size in ((96, 64), (64, 96), (80, 80))]
MODELS = ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image")


def turned_jpeg() -> str:
    image = noise_image(96, 64)
    image.getexif()[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=image.getexif())
    return as_base64(buffer.getvalue())


class EngineEditors:
    """Editors that are engines in this process."""

    def __init__(self, config: AppConfig) -> None:
        self._artifacts = Artifacts(config.artifacts_url)
        self._engines = {model.id: TorchEngine.load(model) for model in config.models}

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        plan = task.plan
        yield StepDone(0, plan.steps)
        files = [self._artifacts.get(artifact_keys.control_image(sha256)) for sha256 in plan.control_images]
        edited = self._engines[plan.model].edit(plan, files)
        data = encode(edited.image, OUTPUT_FORMATS[plan.output_format], {"effective": edited.effective})
        digest = hashlib.sha256(data).hexdigest()
        key = artifact_keys.image(digest, f".{plan.output_format}")
        self._artifacts.put(key, data)
        size = edited.image.size
        url = self._artifacts.url(key)
        yield EditDone(
            key, url, plan.output_format, *size, plan.seed, len(data), digest, edited.timings, edited.effective
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    models = [ModelConfig(id=id, checkpoint=MINIATURE_RANDOM, threads=THREADS, device="cpu") for id in MODELS]
    config = AppConfig(
        models=tuple(models),
        lora_root=str(LORAS),
        artifacts_url=str(folder / "artifacts"),
        jobs={"database_url": f"{SQLITE_PREFIX}{folder}/jobs.sqlite3"},
    )

    async def one_each() -> dict[str, int]:
        return dict.fromkeys(MODELS, 1)

    return Service(config, EngineEditors(config), one_each)


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_app(service)) as client:
        yield client


def made(client, body: dict) -> tuple[bytes, dict]:
    """The image's file, and the record of it."""
    result = client.post("/v1/inference?wait=60", json=body).json()
    assert result["status"] == "succeeded", result
    [image], [record] = result["outputs"]["images"], result["metadata"]["effective"]
    return client.get(image["url"]).content, record


# Each leaves the defaults in the field that it names.
FIELDS = {
    "defaults": {},
    "prompt": {"prompt": "snow on [trigger]", "trigger_word": "sks"},
    "neg": {"neg": "a long blurry thing"},
    "width": {"width": 100},
    "height": {"height": 111},
    "guidance_scale": {"guidance_scale": 2.5},
    "sample_steps": {"sample_steps": 3},
    "seed": {"seed": 7},
    "drawn seed": {"seed": -1},
    "sampler": {"sampler": "lightning"},
    "loras": {"loras": [{"path": LORA, "network_multiplier": 0.5}, {"path": LORA}]},
    "network_multiplier": {"loras": [{"path": LORA, "network_multiplier": -1.5}]},
    "profile": {"profile": "trainer-0.6.0"},
    "output_format": {"output_format": "jpeg"},
    "vae_tiling": {"vae_tiling": True, "width": 352, "height": 96},
    "exif": {"exif": "apply", "ctrl_img": turned_jpeg()},
    "ctrl_img": {"ctrl_img": IMAGES[1]},
    "ctrl_img_1..3": {"model": MODELS[1], **{f"ctrl_img_{i + 1}": image for i, image in enumerate(IMAGES)}},
    "text to image": {"model": MODELS[2], "ctrl_img": None},
}
OF_A_PROMPT = {"prompt", "neg", "width", "height", "guidance_scale", "sample_steps", "seed", "sampler", "ctrl_img"}
OF_A_PROMPT |= {f"ctrl_img_{number}" for number in (1, 2, 3)}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_record_that_is_sent_back_makes_the_image_bit_for_bit(client, fields):
    prompt = {"prompt": "make it night", "ctrl_img": IMAGES[0], "width": 64, "height": 64, "sample_steps": 2}
    body = {"model": MODELS[0], "loras": [{"path": LORA}], "output_format": "png"}
    body["prompts"] = [prompt | {k: v for k, v in fields.items() if k in OF_A_PROMPT}]
    body |= {k: v for k, v in fields.items() if k not in OF_A_PROMPT}
    image, record = made(client, body)
    again, same = made(client, record["request"])
    assert pixels(again) == pixels(image)
    assert same["request"] == record["request"]
    if body["output_format"] == "png":
        carried = json.loads(PIL.Image.open(io.BytesIO(image)).text["effective"])
        assert carried == record


def test_each_field_but_the_format_changes_the_image(client):
    """So that a field which the record forgets is seen above."""
    prompt = {"prompt": "make it night", "ctrl_img": IMAGES[0], "width": 64, "height": 64, "sample_steps": 2}
    body = {"model": MODELS[0], "loras": [{"path": LORA}], "output_format": "png"}
    plain, _ = made(client, body | {"prompts": [prompt]})
    for name, fields in FIELDS.items():
        if name in ("defaults", "output_format", "vae_tiling", "exif"):
            continue
        changed = body | {k: v for k, v in fields.items() if k not in OF_A_PROMPT}
        changed["prompts"] = [prompt | {k: v for k, v in fields.items() if k in OF_A_PROMPT}]
        assert pixels(made(client, changed)[0]) != pixels(plain), name


def test_preset_makes_the_image_of_its_fields_and_its_record_outlives_it(client, service):
    of_prompt = {"sample_steps": 2, "guidance_scale": 2.5, "neg": "blurry", "size": "96x64"}
    fields = {"model": MODELS[0], "loras": [{"path": LORA, "network_multiplier": 0.5}], "trigger_word": "sks"}
    fields |= {"profile": "trainer", "output_format": "png"}
    service.reconfigure(IngressSettings.model_validate({"presets": {"style": fields | of_prompt}}))
    prompt = {"prompt": "[trigger] at night", "ctrl_img": IMAGES[1], "seed": 7}
    body = {"preset": "style", "prompts": [prompt]}
    [explained] = client.post("/v1/explain", json=body).json()["effective"]
    image, record = made(client, body)
    assert record == explained
    assert record["preset"] == "style"
    plain, without = made(client, fields | {"prompts": [prompt | of_prompt]})
    assert pixels(image) == pixels(plain)
    assert without | {"preset": "style"} == record
    service.reconfigure(IngressSettings())
    again, _ = made(client, record["request"])
    assert pixels(again) == pixels(image)


def pixels(file: bytes) -> tuple[tuple[int, int], bytes]:
    image = PIL.Image.open(io.BytesIO(file))
    return image.size, image.tobytes()
