"""Cards without room: weights that wait in host memory, and edits that do not fit."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from serve_app.config import ModelConfig
from serve_app.engine import Engine
from serve_app.errors import OutOfMemory
from serve_app.models import miniature
from serve_app.models.placement import HOST, Placement
from serve_app.models.registry import MODELS
from tests.conftest import THREADS
from tests.engine.conftest import use

# Without control images: quick.
MODEL = MODELS["qwen_image"]


def engine(**options: object) -> Engine:
    return Engine(miniature.make(MODEL), MODEL, ModelConfig(threads=THREADS, device="cpu", **options))


def pixels(engine: Engine, plan) -> np.ndarray:
    return np.asarray(engine.edit(plan, []).image)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_engine_makes_the_same_pictures_with_and_without_adapters(bench, make_plan, loras, offload):
    offloaded = engine(offload=offload)
    one, other = use(loras[0], 0.5), use(loras[1])
    for adapters in ((), (one,), (one, other), (other,), ()):
        plan = make_plan(model=MODEL.id, control_images=(), adapters=adapters)
        assert np.array_equal(pixels(offloaded, plan), pixels(bench(MODEL.id).engine, plan))


def test_sequentially_offloaded_weights_lie_nowhere_on_the_device():
    offloaded = engine(offload="sequential")
    parts = (getattr(offloaded._pipeline, name) for name in ("text_encoder", "transformer", "vae"))
    assert {weight.device.type for part in parts for weight in part.parameters()} == {"meta"}


def test_part_is_on_the_device_for_its_stage_alone_whatever_happens_there():
    moves = []

    class Part(nn.Module):
        def to(self, device):
            moves.append(device)

    def compute_and_fail() -> None:
        with Placement(None, torch.device("cuda"), "model").working(Part()):
            assert moves == [torch.device("cuda")]
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        compute_and_fail()
    assert moves == [torch.device("cuda"), HOST]


@pytest.mark.parametrize(
    "options", [{"compile": "regional", "warm_up": [(64, 64)]}, {"prepare_ahead": True}, {"adapter_weights": "device"}]
)
def test_what_needs_the_room_that_offloading_saves_is_refused(options):
    with pytest.raises(ValidationError, match="offload: not with"):
        ModelConfig(offload="model", **options)


def test_edit_that_does_not_fit_fails_alone(bench, make_plan, loras):
    """A stand-in for a small card: whatever has more tokens than this runs out of memory in the transformer."""
    small = engine()

    def limited(transformer, arguments, inputs):
        if inputs["hidden_states"].shape[1] > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")

    small._pipeline.transformer.register_forward_pre_hook(limited, with_kwargs=True)
    fits = make_plan(model=MODEL.id, control_images=(), adapters=(use(loras[0]),))
    expected = pixels(bench(MODEL.id).engine, fits)
    for _ in range(2):
        with pytest.raises(OutOfMemory, match=r"a picture of 256x256 does not fit into this device's memory"):
            small.edit(make_plan(model=MODEL.id, control_images=(), width=256, height=256), [])
        assert small.alive
        assert np.array_equal(pixels(small, fits), expected)


def test_memory_of_an_edit_that_did_not_fit_is_not_held_by_its_error(make_plan):
    held = []

    class Large:
        def __del__(self):
            held.remove(id(self))

    def fail(*_: object) -> None:
        large = Large()
        held.append(id(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    small = engine()
    small._pipeline.transformer.register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory) as told:
        small.edit(make_plan(model=MODEL.id, control_images=()), [])
    assert told.value.__cause__ is not None
    assert held == []
