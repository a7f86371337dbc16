"""Several devices for one edit: the same images as one device makes."""

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
# Of an edit of 64x64 with a control image of about 1024x1024.
IMAGE_TOKENS = 16 + 4064


@pytest.fixture(scope="module")
def paired() -> TorchEngine:
    return TorchEngine(own_pipeline(MODEL), MODEL, ModelConfig(threads=THREADS), more_devices=[CPU])


@pytest.fixture
def second_forwards(paired):
    """The numbers of tokens in the forwards of the second transformer."""
    calls = []
    images = paired._denoiser.transformers[1].img_in
    hook = images.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[1]))
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
        plan = make_plan(model=MODEL.id, **changes)
        second_forwards.clear()
        made = paired.edit(plan, [control_png])
        assert np.array_equal(
            np.asarray(made.image), np.asarray(bench(MODEL.id).engine.edit(plan, [control_png]).image)
        )
        # A whole branch, or half of the only one.
        guided = 0 if plan.guidance_scale <= 1 else 1 if plan.guidance_gate else plan.steps
        half = -(-IMAGE_TOKENS // 2)
        assert second_forwards == [IMAGE_TOKENS] * guided + [half] * (plan.steps - guided)
        assert made.runtime["transformers"] == 2


@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_failure_on_the_second_device_fails_only_that_edit(paired, make_plan, control_png, guidance_scale):
    plan = make_plan(model=MODEL.id, guidance_scale=guidance_scale)
    run_out_of_memory_once(paired._denoiser.transformers[1].transformer_blocks[1].img_mlp)
    with pytest.raises(OutOfMemory):
        paired.edit(plan, [control_png])
    assert paired.edit(plan, [control_png]).image


def test_twin_shares_nothing_that_an_adapter_writes_to():
    transformer = miniature.make(MODEL).transformer
    other = copy_to_device(transformer, CPU)
    for (name, mine), (its, theirs) in zip(transformer.named_parameters(), other.named_parameters(), strict=True):
        assert name == its
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_replica_of_several_gpus_asks_ray_for_them(count):
    deployment = editor_deployment(ModelConfig(device="cuda", gpus_per_replica=count))
    assert deployment.ray_actor_options["num_gpus"] == count
    assert editor_deployment(ModelConfig(device="cuda")).ray_actor_options["num_gpus"] == 1


@pytest.mark.parametrize(
    "options", [{}, {"device": "cuda", "offload": "stream"}, {"device": "cuda", "adapter_weights": "hooks"}]
)
def test_several_gpus_are_refused_where_there_can_be_one_only(options):
    for count in (2, 4):
        with pytest.raises(ValidationError, match="gpus_per_replica: more than one need"):
            ModelConfig(gpus_per_replica=count, **options)


@pytest.mark.parametrize("options", [{"feature_cache": 0.1}, {"tiers": {"fast": {"feature_cache": 0.1}}}])
def test_feature_cache_is_accepted_with_several_gpus(options):
    """Then each branch stays on one GPU (see tests/engine/test_sequence_parallel.py)."""
    for count in (2, 4, 8):
        assert ModelConfig(device="cuda", gpus_per_replica=count, **options).gpus_per_replica == count
