"""Compiled blocks: the same image within roundings, one graph for whatever comes, and warm before any traffic."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import compile_fx
from torch._inductor import config as inductor
from torch.nn import functional as F

from serve_app.commands.compare import difference
from serve_app.config import MINIATURE_RANDOM, ModelConfig
from serve_app.engine.torch_engine import CANARY_STEPS, TorchEngine
from serve_app.errors import UnusableResult
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.acceleration import choose_attention, compile_blocks
from serve_app.pipeline.fusion import STEPS_AT_ONCE, fuse
from tests.conftest import THREADS
from tests.engine.pipelines import GRAPHS, use, watched

# Without control images, so that a forward is a matter of milliseconds.
MODEL = MODELS["qwen_image"]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ModelConfig:
    return ModelConfig(
        id=MODEL.id,
        checkpoint=MINIATURE_RANDOM,
        device="cpu",
        threads=THREADS,
        compile="regional",
        compile_cache_folder=str(tmp_path_factory.mktemp("compiled")),
        warm_up=((96, 64), (256, 192)),
    )


@pytest.fixture(scope="module")
def compiled(config) -> TorchEngine:
    return TorchEngine.load(config)


def test_adapters_scales_stacks_and_sizes_cause_no_recompilation(compiled, bench, make_plan, loras):
    edits = (
        {},
        {"adapters": (use(loras[0]),)},
        {"adapters": (use(loras[1]),), "prompt": "a much longer prompt, of other words"},
        {"adapters": tuple(map(use, loras[:3]))},
        {"adapters": (use(loras[0], -0.5),), "guidance_scale": 1.0},
        {"width": 160, "height": 96, "negative_prompt": "blurry"},  # between the warmed sizes
        {"width": 64, "height": 128, "adapters": (use(loras[3]),)},
        {"steps": STEPS_AT_ONCE + 1},
        {"steps": 4, "guidance_gate": 0.5, "adapters": (use(loras[0]),)},
        {"steps": 4, "guidance_gate": 0.5, "guidance_gate_rest": "reuse", "feature_cache": 1e-6},
        {},
    )
    for changes in edits:
        plan = make_plan(model=MODEL.id, control_images=(), **changes)
        made = compiled.edit(plan, [])
        assert made.runtime["recompilations"] == compiled.recompilations == 0
        assert difference(made.image, bench(MODEL.id).engine.edit(plan, []).image).largest <= 1


def test_thread_other_than_that_of_the_warm_up_causes_no_recompilation(compiled, make_plan):
    """As a replica without a GPU loads and edits; Dynamo's guards look at state that threads have."""
    plan = make_plan(model=MODEL.id, control_images=())
    with ThreadPoolExecutor(1) as other:
        made = other.submit(compiled.edit, plan, []).result()
    assert made.runtime["recompilations"] == 0
    assert made.image.tobytes() == compiled.edit(plan, []).image.tobytes()


def test_watched_edit_has_the_pixels_of_an_unwatched_one_and_compiles_nothing_anew(compiled, make_plan):
    plan = make_plan(model=MODEL.id, control_images=(), width=96, height=64, steps=3)
    edited, previews = watched(compiled, plan, [])
    assert list(previews) == [1, 2, 3]
    assert edited.image.tobytes() == compiled.edit(plan, []).image.tobytes()
    assert compiled.recompilations == 0


def test_graph_compiled_in_traffic_is_counted(compiled):
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(1, 2))
    assert compiled.recompilations == 1


def test_second_start_finds_what_the_first_compiled(compiled, config):
    torch._dynamo.reset()
    counters.clear()
    assert TorchEngine.load(config).recompilations == 0
    assert counters["inductor"]["fxgraph_cache_hit"] > 0
    assert counters["inductor"]["fxgraph_cache_miss"] == 0


def test_warm_up_with_as_many_tokens_as_a_block_is_wide_serves_other_sizes(config, make_plan):
    torch._dynamo.reset()
    engine = TorchEngine.load(config.model_copy(update={"warm_up": ((64, 64),)}))
    width = engine._pipeline.transformer.inner_dim
    assert width == 64 // 16 * 64 // 16
    assert engine.edit(make_plan(model=MODEL.id, control_images=(), width=96), []).runtime["recompilations"] == 0


def test_number_of_steps_causes_no_recompilation(make_plan):
    torch._dynamo.reset()
    engine = TorchEngine(miniature.make(MODEL), MODEL, ModelConfig(threads=THREADS))
    fuse(engine._pipeline.transformer, with_gelu=False)
    compile_blocks(engine._pipeline.transformer, "eager")
    plans = [make_plan(model=MODEL.id, control_images=(), steps=steps) for steps in (4, 1, STEPS_AT_ONCE + 1)]
    assert [engine.edit(plan, []).compilations for plan in plans] == [GRAPHS, 0, 0]


def test_no_kernel_is_chosen_by_measuring_it(monkeypatch):
    """Two engines would choose differently and add in another order. Inductor measures only on a GPU."""
    deterministic = []

    def compiled(graph, inputs, *, config_patches, **_):
        with inductor.patch(config_patches or {}):
            deterministic.append(inductor.deterministic)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compile_fx, "compile_fx", compiled)
    block = nn.LayerNorm(4)
    compile_blocks(SimpleNamespace(transformer_blocks=[block]))
    block(torch.ones(2, 4))
    assert deterministic == [True]


def test_blocks_compile_around_the_attention_kernel_of_a_package(make_plan, bench):
    """The kernel itself needs a GPU; whatever it is, it is one operator to what is compiled around it."""
    called = []

    def kernel(query, key, value, scale):
        called.append(query.shape)
        heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(*heads, scale=scale).transpose(1, 2).contiguous()

    engine = TorchEngine(miniature.make(MODEL), MODEL, ModelConfig(threads=THREADS))
    transformer = engine._pipeline.transformer
    choose_attention(transformer, "flash_4", lambda: kernel)
    compile_blocks(transformer, "aot_eager")
    plan = make_plan(model=MODEL.id, control_images=())
    made = engine.edit(plan, [])
    assert len(called) == plan.steps * 2 * len(transformer.transformer_blocks)
    assert difference(made.image, bench(MODEL.id).engine.edit(plan, []).image).largest <= 1


def test_replica_whose_image_changes_with_its_warm_up_is_not_ready(config):
    engine = TorchEngine(miniature.make(MODEL), MODEL, config.model_copy(update={"compile": "none"}))
    forwards = []

    def go_wrong(transformer, arguments, output):
        forwards.append(output)
        return (-output[0],) if len(forwards) > CANARY_STEPS * 2 else output

    engine._pipeline.transformer.register_forward_hook(go_wrong)
    with pytest.raises(UnusableResult, match=r"a fixed edit with .* has a similarity of only .* dB"):
        engine.make_ready()


def test_compiling_without_sizes_to_warm_up_with_is_refused():
    with pytest.raises(ValidationError, match="warm_up"):
        ModelConfig(compile="regional")
