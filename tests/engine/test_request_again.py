"""`effective.request` through the service with a real engine: sent back, it makes the image bit for bit."""

import io
import json

import PIL.Image
import pytest

from serve_app.config import MINIATURE_RANDOM
from tests.conftest import LORAS, THREADS, as_base64, as_png, noise_image
from tests.engine.served import served

LORA = "my_lora_job/my_lora.safetensors"
IMAGES = [as_base64(as_png(noise_image(*size))) for size in ((96, 64), (64, 96), (80, 80))]
MODELS = ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image")


def turned_jpeg() -> str:
    image = noise_image(96, 64)
    image.getexif()[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=image.getexif())
    return as_base64(buffer.getvalue())


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    models = [{"id": id, "checkpoint": MINIATURE_RANDOM, "threads": THREADS, "device": "cpu"} for id in MODELS]
    with served(tmp_path_factory.mktemp("service"), models=models, lora_root=str(LORAS)) as service:
        yield service


# Of an edit with a control image. Text-to-image takes a tenth of the time, and fields without an image mean the same.
EDIT = {"model": "qwen_image_edit", "ctrl_img": IMAGES[0], "sample_steps": 1, "guidance_scale": 1.0}
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
    "output_format": {"output_format": "jpeg"},
    "vae_tiling": {"vae_tiling": True, "width": 352, "height": 96},
    "defaults of an edit": EDIT,
    "profile": EDIT | {"profile": "trainer-0.6.0"},
    "exif": EDIT | {"exif": "apply", "ctrl_img": turned_jpeg()},
    "ctrl_img": EDIT | {"ctrl_img": IMAGES[1]},
    "ctrl_img_1..3": EDIT
    | {"model": "qwen_image_edit_plus", "ctrl_img": None}
    | {f"ctrl_img_{i + 1}": image for i, image in enumerate(IMAGES)},
}
OF_A_PROMPT = {"prompt", "neg", "width", "height", "guidance_scale", "sample_steps", "seed", "sampler", "ctrl_img"}
OF_A_PROMPT |= {f"ctrl_img_{number}" for number in (1, 2, 3)}


def body_with(fields: dict) -> dict:
    prompt = {"prompt": "make it night", "width": 64, "height": 64, "sample_steps": 2}
    prompt |= {k: v for k, v in fields.items() if k in OF_A_PROMPT}
    body = {"model": "qwen_image", "loras": [{"path": LORA}], "output_format": "png", "prompts": [prompt]}
    return body | {k: v for k, v in fields.items() if k not in OF_A_PROMPT}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_record_that_is_sent_back_makes_the_image_bit_for_bit(service, fields):
    body = body_with(fields)
    image, record = service.edit(body)
    again, same = service.edit(record["request"])
    assert pixels(again) == pixels(image)
    assert same["request"] == record["request"]
    if body["output_format"] == "png":
        carried = json.loads(PIL.Image.open(io.BytesIO(image)).text["effective"])
        assert carried == record


def test_each_field_but_the_format_changes_the_image(service):
    """So that a field which the record forgets is seen above."""
    plain = {name: pixels(service.edit(body_with(FIELDS[name]))[0]) for name in ("defaults", "defaults of an edit")}
    for name, fields in FIELDS.items():
        if name in (*plain, "output_format", "vae_tiling", "exif"):
            continue
        default = plain["defaults of an edit" if "ctrl_img" in fields else "defaults"]
        assert pixels(service.edit(body_with(fields))[0]) != default, name


def test_preset_makes_the_image_of_its_fields_and_its_record_outlives_it(service):
    of_prompt = {"sample_steps": 1, "guidance_scale": 2.5, "neg": "blurry", "size": "96x64"}
    fields = {"model": MODELS[0], "loras": [{"path": LORA, "network_multiplier": 0.5}], "trigger_word": "sks"}
    fields |= {"profile": "trainer", "output_format": "png"}
    service.reconfigure({"presets": {"style": fields | of_prompt}})
    prompt = {"prompt": "[trigger] at night", "ctrl_img": IMAGES[1], "seed": 7}
    body = {"preset": "style", "prompts": [prompt]}
    [explained] = service.client.post("/v1/explain", json=body).json()["effective"]
    image, record = service.edit(body)
    assert record == explained
    assert record["preset"] == "style"
    plain, without = service.edit(fields | {"prompts": [prompt | of_prompt]})
    assert pixels(image) == pixels(plain)
    assert without | {"preset": "style"} == record
    service.reconfigure({})
    again, _ = service.edit(record["request"])
    assert pixels(again) == pixels(image)


def pixels(file: bytes) -> tuple[tuple[int, int], bytes]:
    image = PIL.Image.open(io.BytesIO(file))
    return image.size, image.tobytes()
