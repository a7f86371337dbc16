"""Cards without room: weights that wait in host memory, and edits that do not fit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from serve_app.config import ModelConfig
from serve_app.engine import denoiser
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import CheckpointRefused, InvalidParameter, OutOfMemory
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.denoise import refuse_too_long
from serve_app.pipeline.device import free_in_container
from tests.conftest import THREADS
from tests.engine.pipelines import run_out_of_memory_once, use

# Without control images: quick.
MODEL = MODELS["qwen_image"]


def engine(**options: object) -> TorchEngine:
    return TorchEngine(miniature.make(MODEL), MODEL, ModelConfig(threads=THREADS, device="cpu", **options))


def pixels(engine: TorchEngine, plan) -> np.ndarray:
    return np.asarray(engine.edit(plan, []).image)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_former_mode_of_offloading_is_refused_with_what_replaces_it(offload):
    with pytest.raises(ValidationError, match=f"offload: {offload} was removed; stream is faster"):
        ModelConfig(offload=offload)


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
        with pytest.raises(OutOfMemory, match=r"an image of 256x256 does not fit into this device's memory"):
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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
)
def test_lack_of_memory_is_recognised_whoever_reports_it(make_plan, error):
    def fail(*_: object) -> None:
        try:
            raise error
        except RuntimeError as cause:
            raise RuntimeError("the compiler failed") from cause

    small = engine()
    small._pipeline.transformer.register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory):
        small.edit(make_plan(model=MODEL.id, control_images=()), [])
    assert small.alive


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_plan):
    broken = engine()

    def fail(*_: object) -> None:
        raise RuntimeError("the shapes do not match")

    broken._pipeline.transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the shapes do not match"):
        broken.edit(make_plan(model=MODEL.id, control_images=()), [])


@pytest.mark.parametrize("ends_before_the_error", [False, True])
def test_edit_that_ran_out_of_memory_during_another_is_made_after_it(make_plan, ends_before_the_error):
    """The other one is being prepared when the memory runs out, and may end before the error is handled."""
    ahead = TorchEngine(miniature.make(MODEL), MODEL, ModelConfig(threads=THREADS, prepare_ahead=True))
    plan = make_plan(model=MODEL.id, control_images=(), prompt="the one")
    prepared, failed, encoding = ahead.prepare(plan, []), threading.Event(), threading.Event()

    def wait_for_failure(*_: object) -> None:
        hooks.pop().remove()
        encoding.set()
        assert failed.wait(60)

    def fail(*_: object) -> None:
        hooks.pop(0).remove()
        assert encoding.wait(60)
        failed.set()
        if ends_before_the_error:
            other.result()
        raise torch.OutOfMemoryError("CUDA out of memory")

    parts = ahead._pipeline
    hooks = [
        parts.transformer.register_forward_pre_hook(fail),
        parts.text_encoder.model.register_forward_pre_hook(wait_for_failure),
    ]
    with ThreadPoolExecutor(1) as other_thread:
        other = other_thread.submit(ahead.prepare, make_plan(model=MODEL.id, control_images=(), prompt="the other"), [])
        made = ahead.run(prepared)
        assert other.result().conditions is not None
    assert np.array_equal(np.asarray(made.image), pixels(engine(), plan))


def test_vae_keeps_nothing_of_an_image_that_was_too_large_for_it(make_plan):
    small = engine()
    vae = small._pipeline.vae
    run_out_of_memory_once(vae.decoder.conv_out)
    with pytest.raises(OutOfMemory):
        small.edit(make_plan(model=MODEL.id, control_images=()), [])
    assert all(kept is None for kept in vae._feat_map)


@pytest.mark.parametrize("attention", ["cudnn", "flash"])
@pytest.mark.parametrize("options", [{"prepare_ahead": True}, {"gpus_per_replica": 2, "device": "cuda"}])
def test_kernel_switch_of_the_whole_process_is_refused_with_two_threads(attention, options):
    with pytest.raises(ValidationError, match="without compile is not for two threads"):
        ModelConfig(attention=attention, **options)
    ModelConfig(attention=attention, compile="regional", warm_up=[(64, 64)], **options)


@pytest.mark.parametrize("options", [{"compile": "regional", "warm_up": [(64, 64)]}, {"quantization": "fp8"}])
def test_options_that_need_merged_adapters_are_refused_with_hooks(monkeypatch, options):
    with pytest.raises(ValidationError, match=r"not with .*adapter_weights: hooks"):
        ModelConfig(adapter_weights="hooks", **options)
    monkeypatch.setattr(denoiser, "place_for_copies", lambda *_: "hooks")
    with pytest.raises(CheckpointRefused, match="need a copy of the original weights"):
        engine(**options)


def test_free_memory_in_a_container_is_what_its_limit_leaves(tmp_path):
    assert free_in_container(tmp_path) > 2**60
    for name, text in {
        "max": "1000\n",
        "current": "700\n",
        "stat": "anon 500\ninactive_file 100\nactive_file 50\n",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_in_container(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert free_in_container(tmp_path) > 2**60


def test_prompt_without_positions_for_all_of_it_is_refused_by_name():
    shapes = [(1, 48, 64), (1, 4, 4)]
    refuse_too_long(4096 - 32, shapes)
    with pytest.raises(InvalidParameter, match=r"is of 4065 tokens, .* the model takes 4064: shorten") as refused:
        refuse_too_long(4096 - 31, shapes)
    assert refused.value.details == {"parameter": "prompt", "tokens": 4065, "most": 4064}
