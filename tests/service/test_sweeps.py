"""A sweep on a real editor: every cell as if it was sent alone, with few swaps and encodings."""

import shutil
import time
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.tasks import Status
from tests.conftest import LORAS, as_base64, as_png, noise_image
from tests.service.conftest import Deployed, pixels

STEPS = (250, 500, 750)
MULTIPLIERS = [0.25, 0.5, 0.75, 1.0]
PROMPTS = ["make it night", "make it day"]
SEEDS = [1, 2]
# How long 48 small cells may take on a busy machine (s).
PATIENCE_S = 200
# No other test has this one, so that it is in no cache.
CONTROL = as_base64(as_png(noise_image(64, 64, seed=4711)))


@pytest.fixture(scope="module")
def checkpoints(family: Deployed) -> Iterator[list[str]]:
    """Three checkpoints of a training job, with the same weights: what differs is which file it is."""
    folder = Path(family.config.lora_root) / "job_of_a_test"
    folder.mkdir(exist_ok=True)
    names = [f"job_of_a_test_{step:09}.safetensors" for step in STEPS]
    try:
        for name in names:
            shutil.copy(LORAS / "my_lora_job/my_lora.safetensors", folder / name)
        yield [f"job_of_a_test/{name}" for name in names]
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def swept(family: Deployed, checkpoints: list[str]) -> dict[str, Any]:
    """The finished sweep: 3 checkpoints, 4 multipliers, 2 prompts, 2 seeds."""
    base = {"model": "qwen_image_edit", "prompts": [prompt_of(PROMPTS[0])], "loras": [{"path": "any"}]}
    axes = {"checkpoints": [{"training_job": "job_of_a_test"}], "multipliers": MULTIPLIERS}
    body = {"base": base, "axes": axes | {"prompts": PROMPTS, "seeds": SEEDS}}
    answer = family.client.post("/v1/sweeps", json=body, timeout=60).json()
    assert answer["cells"] == 48, answer
    deadline = time.monotonic() + PATIENCE_S
    while not Status((shown := family.client.get(f"/v1/sweeps/{answer['sweep_id']}").json())["status"]).ended:
        assert time.monotonic() < deadline, shown["counts"]
        time.sleep(0.5)
    assert shown["status"] == "succeeded"
    return shown


@pytest.fixture(scope="module")
def results(family: Deployed, swept: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The cells with their results, in the order in which the editor began them."""
    found = []
    for cell in swept["grid"]:
        url = f"/v1/requests/{cell['request_id']}"
        began = family.client.get(f"{url}/status").json()["started_at"]
        found.append((began, cell, family.client.get(f"{url}/result").json()))
    return [(cell, result) for _, cell, result in sorted(found, key=lambda each: each[0])]


def test_adapters_are_swapped_once_for_each_checkpoint_and_multiplier(results):
    settings = [(cell["place"]["checkpoint"], cell["place"]["multiplier"]) for cell, _ in results]
    assert sum(one != other for one, other in pairwise(settings)) + 1 <= len(STEPS) * len(MULTIPLIERS) + 1


def test_prompts_and_the_control_image_are_encoded_once(results):
    reused = [result["metadata"]["runtime"][0]["reused"] for _, result in results]
    # Each edit needs its prompt, the empty negative one, and the control image.
    assert sum(2 - each["prompts"] for each in reused) == len(PROMPTS) + 1
    assert sum(1 - each["controls"] for each in reused) == 1


def test_half_of_the_cells_have_the_pixels_of_the_same_request_outside_of_a_sweep(family, swept, checkpoints):
    """Each checkpoint and multiplier in one request, with an image for each prompt and for each seed."""
    by_place = {tuple(cell["place"].values()): cell for cell in swept["grid"]}
    for checkpoint, multiplier in product(range(len(STEPS)), range(len(MULTIPLIERS))):
        lora = {"path": checkpoints[checkpoint], "network_multiplier": MULTIPLIERS[multiplier]}
        # Each prompt with the one seed here, and with the other one for the next multiplier.
        places = [(prompt, (prompt + multiplier) % len(SEEDS)) for prompt in range(len(PROMPTS))]
        prompts = [prompt_of(PROMPTS[prompt]) | {"seed": SEEDS[seed]} for prompt, seed in places]
        body = {"model": "qwen_image_edit", "prompts": prompts, "loras": [lora], "output_format": "png"}
        images = family.result(family.submit(body))["outputs"]["images"]
        for image, (prompt, seed) in zip(images, places, strict=True):
            cell = by_place[checkpoint, multiplier, prompt, seed, 0, 0, 0]
            ours, theirs = (pixels(family.client.get(each["url"]).content) for each in (cell, image))
            assert np.array_equal(ours, theirs)


def prompt_of(text: str) -> dict[str, Any]:
    return {"prompt": text, "ctrl_img": CONTROL, "width": 64, "height": 64, "sample_steps": 2, "guidance_scale": 3.0}


def test_cell_has_the_pixels_of_the_same_request_sent_alone(family, swept, checkpoints):
    cell = swept["grid"][-1]
    place = cell["place"]
    lora = {"path": checkpoints[place["checkpoint"]], "network_multiplier": MULTIPLIERS[place["multiplier"]]}
    prompt = prompt_of(PROMPTS[place["prompt"]]) | {"seed": SEEDS[place["seed"]]}
    alone = {"model": "qwen_image_edit", "prompts": [prompt], "loras": [lora], "output_format": "png"}
    _, data = family.edit(alone)
    assert np.array_equal(pixels(family.client.get(cell["url"]).content), pixels(data))


def test_cells_differ_by_what_the_axes_say(family, swept):
    by_place = {tuple(cell["place"].values()): cell for cell in swept["grid"]}
    first = swept["grid"][0]["place"]
    base = pixels(family.client.get(by_place[tuple(first.values())]["url"]).content)
    for axis in ("multiplier", "prompt", "seed"):
        other = by_place[tuple((first | {axis: 1}).values())]
        assert not np.array_equal(base, pixels(family.client.get(other["url"]).content)), axis
