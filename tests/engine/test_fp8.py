"""Weights in eight bits: adapters go in from the untouched bf16 weights, and come out without a trace."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from serve_app.config import ModelConfig
from serve_app.engine.canary import similarity_db
from serve_app.engine.deltas import Adapter, Full, LowRank
from serve_app.engine.merged_weights import MergedWeights
from serve_app.engine.merging import Unrounded, linear_weights, write_rounded
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import EditorUnavailable, describe
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.quantization import of_inputs, quantised, should_quantise
from tests.conftest import THREADS
from tests.engine.pipelines import use

MODEL = MODELS["qwen_image"]


@pytest.fixture(scope="module")
def engines() -> tuple[TorchEngine, TorchEngine]:
    """In bf16, and the same weights in fp8."""

    def engine(**options: object) -> TorchEngine:
        pipeline = miniature.make(MODEL).to(torch.bfloat16)
        made = TorchEngine(pipeline, MODEL, ModelConfig(threads=THREADS, adapter_weights="device", **options))
        made.make_ready()
        return made

    return engine(), engine(quantization="fp8", warm_up=[(64, 64)])


def weights(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {
        name: module.weight.detach().clone()
        for name, module in engine._pipeline.transformer.named_modules()
        if should_quantise(name, module)
    }


def test_each_weight_is_the_rounding_of_the_merged_one_and_nothing_lasts(engines, make_plan, loras):
    plain, rounded = engines
    for adapters in ((use(loras[0]),), (use(loras[1], 0.5), use(loras[0])), (use(loras[0], -1.0),), ()):
        plan = make_plan(model=MODEL.id, control_images=(), adapters=adapters)
        expected, found = plain.edit(plan, []).image, rounded.edit(replace(plan, quantization="fp8"), []).image
        merged, eighths = weights(plain), weights(rounded)
        assert len(merged) == len(eighths) == 2 * 12
        for name, weight in merged.items():
            assert eighths[name].qdata.dtype == torch.float8_e4m3fn
            assert torch.equal(eighths[name].dequantize(), quantised(weight).dequantize())
        assert 6 < similarity_db(expected, found) < np.inf


@pytest.mark.parametrize("kind", ["low rank", "full"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_rounded_one_by_one(monkeypatch, kind, dtype):
    """A product is added while it is rounded; any other sum takes the memory of a weight until then."""
    transformer = miniature.make(MODEL).transformer.to(dtype)
    merged = MergedWeights(transformer, "device")
    merged.quantise()
    deltas = {}
    for name in linear_weights(transformer):
        out, into = transformer.get_submodule(name.removesuffix(".weight")).weight.shape
        low_rank = LowRank(torch.randn(out, 2).to(dtype), torch.randn(2, into).to(dtype), 1.0)
        deltas[name] = low_rank if kind == "low rank" else Full(torch.randn(out, into))
    sums = []

    def counting(weights: list[Unrounded]) -> None:
        sums.append(sum(bool(weight.deltas) and weight.product is None for weight in weights))
        write_rounded(weights)

    monkeypatch.setattr("serve_app.engine.merged_weights.write_rounded", counting)
    merged.apply({"a": (Adapter(deltas, pinned=False), 1.0)})
    assert max(sums) == (0 if kind == "low rank" and dtype == torch.bfloat16 else 1)


def test_only_linears_that_all_tokens_pass_are_rounded(engines):
    names = weights(engines[1])
    assert {name.split(".", 2)[2] for name in names} == {
        *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
        *(f"attn.add_{name}_proj" for name in "qkv"),
        *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
    }


def test_plan_for_other_weights_is_left_to_another_editor(engines, make_plan):
    plan = make_plan(model=MODEL.id, control_images=())
    for engine, other in zip(engines, ("fp8", "none"), strict=True):
        with pytest.raises(EditorUnavailable, match="quantization") as refused:
            engine.edit(replace(plan, quantization=other), [])
        # The attempt does not count (see tests/unit/test_dispatch.py).
        assert describe(refused.value).retryable


@pytest.mark.parametrize("options", [{"offload": "stream"}, {"adapter_weights": "hooks"}])
def test_what_cannot_be_rounded_is_refused(options):
    with pytest.raises(ValidationError, match="quantization: not with"):
        ModelConfig(quantization="fp8", **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_zeros_stays_zero_and_others_have_torchaos_bits(dtype):
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor

    weight = torch.randn(32, 64).to(dtype)
    # A row as small as weights never are, and one of zeros.
    weight[2] *= 1e-20
    weight[3] = 0
    found, expected = quantised(weight), Float8Tensor.from_hp(weight, granularity=PerRow())
    assert torch.equal(found.dequantize()[3], torch.zeros(64, dtype=dtype))
    others = [row for row in range(32) if row != 3]
    assert torch.equal(found.qdata[others].view(torch.uint8), expected.qdata[others].view(torch.uint8))
    assert torch.equal(found.scale[others], expected.scale[others])


def test_a_token_of_zeros_stays_zero():
    from torchao.quantization.quantize_.common import _choose_quant_func_and_quantize_tensor

    tokens = torch.randn(5, 64).bfloat16()
    tokens[1] = 0
    made = _choose_quant_func_and_quantize_tensor(tokens, of_inputs()).dequantize()
    assert torch.equal(made[1], tokens[1])
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("kind", ["low rank", "full"])
def test_an_adapter_that_makes_a_row_zero_makes_finite_weights(kind):
    transformer = miniature.make(MODEL).transformer.bfloat16()
    name = next(name for name in linear_weights(transformer) if name.startswith("transformer_blocks.0.attn"))
    module = transformer.get_submodule(name.removesuffix(".weight"))
    up, down = torch.zeros(module.weight.shape[0], 1).bfloat16(), module.weight.detach()[3:4].clone()
    up[3] = -1
    delta = LowRank(up, down, 1.0) if kind == "low rank" else Full((up @ down).float())
    merged = MergedWeights(transformer, "device")
    merged.quantise()
    merged.apply({"a": (Adapter({name: delta}, pinned=False), 1.0)})
    made = module.weight.dequantize()
    assert torch.equal(made[3], torch.zeros_like(made[3]))
    assert torch.isfinite(made).all()


def test_a_checkpoint_with_a_row_of_zeros_makes_an_image(make_plan):
    pipeline = miniature.make(MODEL).to(torch.bfloat16)
    with torch.no_grad():
        pipeline.transformer.transformer_blocks[0].attn.to_v.weight[3] = 0
    engine = TorchEngine(pipeline, MODEL, ModelConfig(threads=THREADS, quantization="fp8", warm_up=[(64, 64)]))
    engine.make_ready()
    plan = make_plan(model=MODEL.id, control_images=(), quantization="fp8")
    assert np.asarray(engine.edit(plan, []).image).std() > 0
