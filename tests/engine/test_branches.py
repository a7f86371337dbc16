"""Two devices, one guidance branch each: the same images as one device makes, bit for bit."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from serve_app.app import editor_deployment
from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import OutOfMemory
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.branches import copy_to_device
from tests.conftest import THREADS
from tests.engine.pipelines import CPU, own_pipeline, run_out_of_memory_once, use

MODEL = MODELS["qwen_image_edit_plus_2511"]


@pytest.fixture(scope="module")
def paired() -> TorchEngine:
    return TorchEngine(own_pipeline(MODEL), MODEL, ModelConfig(threads=THREADS), more_devices=[CPU])


@pytest.fixture
def second_forwards(paired):
    """Counts the forwards of the second transformer."""
    calls = []
    hook = paired._denoiser.transformers[1].register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def test_two_devices_make_the_images_of_one(paired, bench, make_plan, control_png, loras, second_forwards):
    one, other = use(loras[0], 0.5), use(loras[1])
    edits = (
        {"adapters": (one,)},
        {"adapters": (other, one)},
        {"guidance_scale": 1.0, "adapters": (other,)},
        {"steps": 3, "guidance_gate": 0.3, "guidance_gate_rest": "reuse", "adapters": (one,)},
        {},
    )
    for changes in edits:
        plan, before = make_plan(model=MODEL.id, **changes), len(second_forwards)
        made = paired.edit(plan, [control_png])
        assert np.array_equal(
            np.asarray(made.image), np.asarray(bench(MODEL.id).engine.edit(plan, [control_png]).image)
        )
        guided_steps = 1 if plan.guidance_gate else plan.steps
        assert len(second_forwards) - before == (guided_steps if plan.guidance_scale > 1 else 0)
        assert made.runtime["transformers"] == 2


def test_failure_on_the_second_device_fails_only_that_edit(paired, make_plan, control_png):
    run_out_of_memory_once(paired._denoiser.transformers[1])
    with pytest.raises(OutOfMemory):
        paired.edit(make_plan(model=MODEL.id), [control_png])
    assert paired.edit(make_plan(model=MODEL.id), [control_png]).image


def test_twin_shares_nothing_that_an_adapter_writes_to():
    transformer = miniature.make(MODEL).transformer
    other = copy_to_device(transformer, CPU)
    for (name, mine), (its, theirs) in zip(transformer.named_parameters(), other.named_parameters(), strict=True):
        assert name == its
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


def test_replica_of_two_gpus_asks_ray_for_two():
    deployment = editor_deployment(ModelConfig(device="cuda", gpus_per_replica=2))
    assert deployment.ray_actor_options["num_gpus"] == 2
    assert editor_deployment(ModelConfig(device="cuda")).ray_actor_options["num_gpus"] == 1


@pytest.mark.parametrize(
    "options", [{}, {"device": "cuda", "offload": "stream"}, {"device": "cuda", "adapter_weights": "hooks"}]
)
def test_two_gpus_are_refused_where_there_cannot_be_two(options):
    with pytest.raises(ValidationError, match="gpus_per_replica: two need"):
        ModelConfig(gpus_per_replica=2, **options)
