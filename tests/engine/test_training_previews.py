"""Training previews made again through the service are equal to those that the second writing of the trainer made.

Equal in every pixel, once ours is saved as the trainer saves its own: for each version of the trainer, and for each of
its rules. What the rules do to the settings is tested in tests/unit/test_training_samples.py.
"""

import io
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from serve_app.config import MINIATURE_RANDOM
from tests.conftest import THREADS, as_png, noise_image
from tests.engine import trainer
from tests.engine.once import encode_once
from tests.engine.pipelines import own_pipeline, write_loras
from tests.engine.served import Served, served

MODELS = ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image")
# One version of each profile.
VERSIONS = {"0.6.0": "trainer-0.6.0", "0.7.32": "trainer-0.7.32", "0.9.0": "trainer-0.9.0", "0.12.26": "trainer"}
SMALL = {"width": 96, "height": 64, "sample_steps": 2, "guidance_scale": 3}
NUMBERS = count()
Train = Callable[..., str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "control").mkdir()
    # Of this size, the trainer's second resize of edit plus changes it.
    for name, size in (("wide", (640, 256)), ("tall", (40, 120))):
        (root / f"control/{name}.png").write_bytes(as_png(noise_image(*size)))
    return root


@pytest.fixture(scope="module")
def service(root: Path, tmp_path_factory: pytest.TempPathFactory):
    models = [{"id": id, "checkpoint": MINIATURE_RANDOM, "threads": THREADS, "device": "cpu"} for id in MODELS]
    with served(tmp_path_factory.mktemp("service"), models=models, lora_root=str(root)) as service:
        for engine in service.engines.values():
            encode_once(engine._pipeline.vae)
        yield service


@pytest.fixture(scope="module")
def lora_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_loras(tmp_path_factory.mktemp("loras"))


@pytest.fixture(scope="module")
def train(root: Path, lora_files: list[Path]) -> Train:
    """Make a training job with these samples, and return its name."""
    pipelines: dict[str, Any] = {}

    def make(
        model: str, sample: dict, version: str = trainer.NEWEST, steps: Sequence[int] = (250,), **changes: Any
    ) -> str:
        from serve_app.models.registry import MODELS

        if model not in pipelines:
            pipelines[model] = own_pipeline(MODELS[model])
        name = f"job_{next(NUMBERS)}"
        config = trainer.config_of(name, model, SMALL | sample, **changes)
        loras = dict(zip(steps, lora_files, strict=False))
        trainer.train(pipelines[model], model, root / "people" / name, config, loras, version)
        return f"people/{name}"

    return make


def redo(service: Served, name: str, step: int) -> dict:
    started = service.client.post(f"/v1/training-jobs/{name}/previews", json={"step": step}).json()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status = service.client.get(started["status_url"]).json()
        if status["status"] not in ("in_queue", "in_progress"):
            assert status["status"] == "succeeded", status
            return status
        time.sleep(0.02)
    raise AssertionError("the previews did not end")


def assert_reproduced(service: Served, name: str, *steps: int) -> None:
    for step in steps:
        status = redo(service, name, step)
        assert all(pair["comparison"] and pair["comparison"]["is_equal"] for pair in status["pairs"]), [
            pair["comparison"] for pair in status["pairs"]
        ]
        assert status["summary"].startswith("This service reproduces your previews")
        for pair in status["pairs"]:
            theirs = service.client.get(pair["theirs"]["url"]).content
            ours = PIL.Image.open(io.BytesIO(service.client.get(pair["ours"]["url"]).content))
            saved = io.BytesIO()
            ours.save(saved, "JPEG")
            assert saved.getvalue() == theirs


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("model", ["qwen_image_edit", "qwen_image_edit_plus"])
def test_previews_of_each_version_are_reproduced(service, root, train, model, version):
    items = [{"prompt": "[trigger] at night", "ctrl_img_1": str(root / "control/wide.png"), "neg": "fog"}]
    name = train(model, {"samples": items}, version)
    assert service.client.get(f"/v1/training-jobs/{name}").json()["profile"] == VERSIONS[version]
    assert_reproduced(service, name, 250)


@pytest.mark.parametrize("others", ["0.6.0", "0.7.32", "0.9.0"])
def test_previews_of_another_version_than_the_file_names_are_not_equal(service, root, train, others, monkeypatch):
    items = [{"prompt": "at night", "ctrl_img_1": str(root / "control/wide.png"), "neg": "fog"}]
    edit = trainer.trainer_edit
    monkeypatch.setattr(trainer, "trainer_edit", lambda *a, version, **k: edit(*a, version=others, **k))
    name = train("qwen_image_edit_plus", {"samples": items}, "0.12.26")
    [pair] = redo(service, name, 250)["pairs"]
    assert not pair["comparison"]["is_equal"]


def test_every_rule_of_the_trainer_is_followed(service, root, train):
    """Sticky seeds, flags, multipliers as texts, sides that are floored, two control images."""
    wide, tall = str(root / "control/wide.png"), str(root / "control/tall.png")
    items = [
        {"prompt": " [trigger] and [name] "},
        {"prompt": "a cat", "seed": 40, "network_multiplier": "0.5"},
        {"prompt": "a dog", "network_multiplier": "strong"},
        {"prompt": "a cow --d 3 --w 135 --h 71 --l 2 --s 2 --m -0.5 --n rain --p2 x", "neg": False},
        {"prompt": "a hen -- in a hat", "width": 71, "height": 135},
        {"prompt": "a fox", "ctrl_img": None, "ctrl_img_1": tall, "ctrl_img_2": wide},
    ]
    items = [{"ctrl_img_1": wide} | item for item in items]
    name = train("qwen_image_edit_plus", {"samples": items, "seed": 7, "neg": "fog", "network_multiplier": 0.8})
    assert_reproduced(service, name, 250)


def test_walking_seeds_and_ctrl_img_of_the_edit_model(service, root, train):
    wide = str(root / "control/wide.png")
    items = [{"prompt": "a cat", "ctrl_img": wide, **more} for more in ({}, {"seed": 40}, {})]
    name = train("qwen_image_edit", {"samples": items, "seed": 7, "walk_seed": True})
    assert_reproduced(service, name, 0, 250)


def test_prompts_without_a_trigger_word_and_the_trainers_defaults(service, train):
    # All defaults but the number of steps: 512x512, seed 0, guidance 7.
    sample = {"prompts": ["[trigger] a cat"], "width": 512, "height": 512, "guidance_scale": 7}
    name = train("qwen_image", sample, steps=(250, 500), trigger_word=None)
    # The final file, by the step in its header: the config has another.
    assert_reproduced(service, name, 500)


def test_png_samples_are_equal_without_being_saved_again(service, train):
    name = train("qwen_image", {"prompts": ["a cat"], "format": "png"})
    [pair] = redo(service, name, 250)["pairs"]
    assert pair["comparison"]["is_equal"]
    theirs = PIL.Image.open(io.BytesIO(service.client.get(pair["theirs"]["url"]).content))
    ours = PIL.Image.open(io.BytesIO(service.client.get(pair["ours"]["url"]).content))
    assert theirs.tobytes() == ours.tobytes()
