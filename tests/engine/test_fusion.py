"""What is written anew for the compiler: the same mathematics as diffusers' own."""

from collections.abc import Sequence

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import nn
from torch.nn import functional as F

from serve_app.commands.compare import difference
from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import EditCanceled, OutOfMemory
from serve_app.models.registry import MODELS
from serve_app.pipeline import fusion, miniature
from serve_app.pipeline.acceleration import accelerate
from serve_app.pipeline.fusion import (
    LinearGelu,
    clear_modulations,
    fuse,
    linear_gelu,
    modulate,
    modulations,
    rotated,
)
from tests.conftest import THREADS
from tests.engine.pipelines import CPU, own_pipeline, run_out_of_memory_once

# With control images at another time than the target.
MODEL = MODELS["qwen_image_edit_plus_2511"]


@pytest.fixture
def transformer(request) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        return miniature.make_transformer(zero_cond_t=getattr(request, "param", False)).eval()


def forward(transformer: nn.Module, time: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    width = transformer.config.joint_attention_dim
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 2 * 6, 64, generator=generator),
            encoder_hidden_states=torch.randn(1, 7, width, generator=generator),
            encoder_hidden_states_mask=None,
            timestep=torch.tensor([time]),
            img_shapes=[[(1, 2, 3), (1, 3, 2)]],
            return_dict=False,
        )[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_turns_are_those_of_complex_numbers(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 5, 3, 16, generator=generator).to(dtype)
    turns = torch.polar(torch.ones(5, 8), torch.randn(5, 8, generator=generator) * 3)
    found, expected = rotated(states, turns), apply_rotary_emb_qwen(states, turns, use_real=False)
    assert found.dtype == dtype
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_forward_is_the_same(transformer):
    expected = forward(transformer)
    fuse(transformer, with_gelu=False)
    found = forward(transformer)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, expected.roll(1, dims=1), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("transformer", [False, True], ids=["", "zero_cond_t"], indirect=True)
def test_modulations_are_those_of_the_step(transformer, monkeypatch):
    monkeypatch.setattr(fusion, "STEPS_AT_ONCE", 2)
    times = [0.9, 0.6, 0.3]
    expected = [forward(transformer, time) for time in times]
    fuse(transformer, with_gelu=False)
    for step, time in enumerate(times):
        with torch.no_grad():
            modulate(transformer, torch.tensor(times), step)
        found = forward(transformer, time)
        assert torch.allclose(found, expected[step], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, expected[step - 1], rtol=1e-2, atol=1e-2)
    # What another image sees is its own.
    clear_modulations(transformer)
    assert torch.allclose(forward(transformer, times[0]), expected[0], rtol=1e-4, atol=1e-5)


class Fused:
    """An engine with fused blocks, and how many products their modulations were made by."""

    def __init__(self, more_devices: Sequence[torch.device] = ()) -> None:
        self.engine = TorchEngine(own_pipeline(MODEL), MODEL, ModelConfig(threads=THREADS), more_devices=more_devices)
        self.transformers = self.engine._denoiser.transformers
        self.products = 0
        for transformer in self.transformers:
            fuse(transformer, with_gelu=False)
        self.modulations = [each for transformer in self.transformers for each in modulations(transformer)]
        for modulation in self.modulations:
            modulation[1].register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.products += 1

    def keeps_anything(self) -> bool:
        return any(m.now is not None or m.of_steps is not None for m in self.modulations)


def test_modulations_of_many_steps_are_made_at_once_on_each_device(monkeypatch, bench, make_plan, control_png):
    monkeypatch.setattr(fusion, "STEPS_AT_ONCE", 2)
    one, pair = Fused(), Fused(more_devices=[CPU])
    for steps, times in ((1, 1), (3, 2)):
        plan = make_plan(model=MODEL.id, steps=steps)
        expected = bench(MODEL.id).engine.edit(plan, [control_png]).image
        images = []
        for fused in (one, pair):
            fused.products = 0
            images.append(fused.engine.edit(plan, [control_png]).image)
            assert fused.products == times * len(fused.modulations)
            assert not fused.keeps_anything()
        assert images[0].tobytes() == images[1].tobytes()
        assert difference(images[0], expected).largest <= 1


def test_modulations_of_an_aborted_edit_are_dropped(make_plan, control_png):
    fused = Fused(more_devices=[CPU])
    plan = make_plan(model=MODEL.id)
    for transformer in fused.transformers:
        run_out_of_memory_once(transformer.transformer_blocks[-1].txt_mod[1])
        with pytest.raises(OutOfMemory):
            fused.engine.edit(plan, [control_png])
        assert not fused.keeps_anything()
    with pytest.raises(EditCanceled):
        fused.engine.edit(plan, [control_png], should_stop=lambda: fused.products > 0)
    assert not fused.keeps_anything()


def test_linear_fused_with_its_gelu_keeps_its_name(transformer):
    """The adapters' files name the linears. On a CPU torch's fused GELU is the exact one: 5e-4 apart at most."""
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    expected = forward(transformer)
    fuse(transformer, with_gelu=True)
    assert [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)] == names
    assert sum(isinstance(module, LinearGelu) for module in transformer.modules()) == 2 * len(
        transformer.transformer_blocks
    )
    found = forward(transformer)
    assert not torch.equal(found, expected)
    assert torch.allclose(found, expected, atol=5e-3)


def test_operator_is_linear_and_gelu():
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((1, 5, 8), (12, 8), (12,)))
    found = linear_gelu(states, weight, bias)
    assert torch.allclose(found, F.gelu(F.linear(states, weight, bias)), atol=1e-6)
    torch.library.opcheck(linear_gelu, (states, weight, bias), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("quantization", "fused"), [("none", True), ("fp8", False)])
def test_gelu_is_fused_with_plain_weights(transformer, quantization, fused, tmp_path, monkeypatch):
    monkeypatch.setattr(type(transformer), "device", torch.device("cuda"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    given = {"warm_up": [(64, 64)], "compile_cache_folder": str(tmp_path), "quantization": quantization}
    accelerate(transformer, ModelConfig(compile="regional", **given), transformer.device)
    assert any(isinstance(module, LinearGelu) for module in transformer.modules()) == fused
