"""Training previews made again through HTTP and Ray are those of the second writing of the trainer."""

import time
from pathlib import Path

import torch

from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from tests.conftest import LORAS, THREADS, as_png, noise_image
from tests.engine import trainer

MODEL = "qwen_image_edit"
SAMPLE = {"width": 96, "height": 64, "sample_steps": 2, "guidance_scale": 3, "seed": 7, "neg": "fog"}


def test_previews_through_ray_are_equal_and_made_once(family):
    torch.set_num_threads(THREADS)
    root = Path(family.config.lora_root)
    control = root / "control/photo.png"
    control.parent.mkdir()
    control.write_bytes(as_png(noise_image(120, 80)))
    items = [{"prompt": "[trigger] at night", "ctrl_img": str(control)}]
    config = trainer.config_of("my_job", MODEL, SAMPLE | {"samples": items})
    pipeline = checkpoint.read(miniature.checkpoint_folder(MODELS[MODEL]), torch.float32)
    lora = LORAS / "my_lora_job/my_lora.safetensors"
    trainer.train(pipeline, MODEL, root / "people/my_job", config, {250: lora}, "0.7.32")
    statuses = [redo(family, step) for step in (250, 0, 250)]
    for status in statuses:
        assert [pair["comparison"]["is_equal"] for pair in status["pairs"]] == [True], status
    requests = [status["pairs"][0]["ours"]["request_id"] for status in statuses]
    assert requests[0] == requests[2] != requests[1]


def redo(family, step: int) -> dict:
    answer = family.client.post("/v1/training-jobs/people/my_job/previews", json={"step": step})
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        # A whole URL, also below a prefix.
        status = family.client.get(answer.json()["status_url"]).json()
        if status["status"] not in ("in_queue", "in_progress"):
            return status
        time.sleep(0.1)
    raise AssertionError("the previews did not end")
