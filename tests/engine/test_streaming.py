"""Streamed weights: the same pixels as with resident weights, whatever fits on the device."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import OutOfMemory
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.pipeline import fusion, miniature, streaming
from serve_app.pipeline.acceleration import compile_blocks
from serve_app.pipeline.host_units import CopyStream, Unit
from serve_app.pipeline.layer_stream import LayerStream, NoChanges, evenly
from serve_app.pipeline.random_lora import make_lora
from tests.conftest import THREADS
from tests.engine.pipelines import CPU, GRAPHS, own_pipeline, run_out_of_memory_once, use

TEXT_TO_IMAGE = MODELS["qwen_image"]
# The blocks of the transformer, more than the two that the miniature has.
BLOCKS = 7


@pytest.fixture(autouse=True)
def deep(monkeypatch):
    """Miniatures of more layers than are on the device at a time."""
    monkeypatch.setattr(
        miniature, "MINIATURE_ARCHITECTURE", replace(miniature.MINIATURE_ARCHITECTURE, num_layers=BLOCKS)
    )
    monkeypatch.setattr(miniature, "TEXT", miniature.TEXT | {"num_hidden_layers": 5})
    monkeypatch.setattr(miniature, "VISION", miniature.VISION | {"depth": 3})


@pytest.fixture
def staying(monkeypatch):
    """`staying(n)`: this many layers of each part stay on the device."""

    def staying(count: int) -> None:
        monkeypatch.setattr(streaming, "stays", lambda sizes, room: min(count, len(sizes)))

    return staying


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[Path]:
    """Two LoRAs, and one file with LoKr, full differences and a top-level module."""
    folder = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature, "MINIATURE_ARCHITECTURE", replace(miniature.MINIATURE_ARCHITECTURE, num_layers=BLOCKS))
        transformer = miniature.make(TEXT_TO_IMAGE).transformer
    loras = [folder / "one.safetensors", folder / "other.safetensors"]
    for seed, path in enumerate(loras):
        make_lora(transformer, path, seed=seed)
    torch.manual_seed(0)
    tensors = {}
    for block in (0, 3, BLOCKS - 1):
        prefix = f"diffusion_model.transformer_blocks.{block}"
        tensors |= {f"{prefix}.attn.to_k.lokr_w{i}": torch.randn(4, 4) / 2 for i in (1, 2)}
        tensors[f"{prefix}.img_mod.1.diff"] = torch.randn(96, 16) / 4
        tensors[f"{prefix}.attn.norm_q.diff"] = torch.randn(16) / 4
    tensors["diffusion_model.img_in.diff"] = torch.randn(16, 64) / 8
    mixed = folder / "mixed.safetensors"
    save_file(tensors, mixed)
    return [*loras, mixed]


def engine(spec: ModelSpec = TEXT_TO_IMAGE, dtype: torch.dtype = torch.float32, **options: object) -> TorchEngine:
    config = ModelConfig(id=spec.id, threads=THREADS, device="cpu", **options)
    return TorchEngine(own_pipeline(spec).to(dtype=dtype), spec, config)


def pixels(engine: TorchEngine, plan, images=()) -> np.ndarray:
    return np.asarray(engine.edit(plan, images).image)


def stacks(adapters: list[Path]) -> list[tuple]:
    """Adapters of edits in a row: none, one, two, kinds mixed, other scales, and none again."""
    one, other, mixed = adapters
    return [
        (),
        (use(one),),
        (use(one, 0.5), use(other)),
        (use(mixed),),
        (use(mixed, -0.5), use(one)),
        (use(other),),
        (),
    ]


@pytest.mark.parametrize("stay", [0, 3, BLOCKS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_streamed_engine_makes_the_same_images_with_and_without_adapters(make_plan, adapters, staying, stay, dtype):
    staying(stay)
    resident, streamed = engine(dtype=dtype), engine(dtype=dtype, offload="stream")
    seen = set()
    for index, stack in enumerate(stacks(adapters)):
        guidance = 1.0 if index % 3 == 2 else 4.0
        plan = make_plan(model=TEXT_TO_IMAGE.id, control_images=(), adapters=stack, guidance_scale=guidance)
        expected = pixels(resident, plan)
        assert np.array_equal(pixels(streamed, plan), expected)
        seen.add(expected.tobytes())
    assert len(seen) == 6


@pytest.mark.parametrize("stay", [0, 2])
def test_encoders_and_control_images_are_streamed_too(make_plan, control_png, adapters, staying, stay):
    staying(stay)
    spec = MODELS["qwen_image_edit_plus_2511"]
    resident, streamed = engine(spec), engine(spec, offload="stream")
    for prompt in ("a red house", "a blue house"):
        plan = make_plan(model=spec.id, prompt=prompt, adapters=(use(adapters[0]),))
        assert np.array_equal(pixels(streamed, plan, [control_png]), pixels(resident, plan, [control_png]))


@pytest.mark.parametrize("spec", [TEXT_TO_IMAGE, MODELS["qwen_image_edit_plus_2511"]], ids=lambda spec: spec.id)
def test_compiled_blocks_stay_one_graph_and_make_the_same_images(
    make_plan, control_png, adapters, staying, spec, monkeypatch
):
    staying(3)
    monkeypatch.setattr(fusion, "STEPS_AT_ONCE", 2)
    images = [control_png] if spec.requires_control_image else []
    made = {}
    for offload in ("none", "stream"):
        torch._dynamo.reset()
        built = engine(spec, offload=offload)
        fusion.fuse(built._pipeline.transformer, with_gelu=False)
        compile_blocks(built._pipeline.transformer, "eager")
        built._denoiser.placement.fused(built._pipeline.transformer)
        made[offload] = []
        for steps, stack in zip((3, 1), stacks(adapters)[2:], strict=False):
            controls = ("0" * 64,) * len(images)
            plan = make_plan(model=spec.id, control_images=controls, adapters=stack, steps=steps)
            made[offload].append(built.edit(plan, images))
        assert [edited.compilations for edited in made[offload]] == [GRAPHS, 0]
    for resident, streamed in zip(*made.values(), strict=True):
        assert streamed.image.tobytes() == resident.image.tobytes()


def copied_in(streamed: TorchEngine, monkeypatch, plan) -> Counter:
    """How often an edit copies each block of the transformer, by the block's host memory."""
    counts: Counter = Counter()
    original = CopyStream.copy

    def copy(self, block: Tensor, host: Tensor) -> None:
        counts[host.data_ptr()] += 1
        original(self, block, host)

    with monkeypatch.context() as patch:
        patch.setattr(CopyStream, "copy", copy)
        streamed.edit(plan, [])
    part = streamed._denoiser.placement._parts[streamed._pipeline.transformer]
    [stream] = part.streams
    return Counter({index: counts[units[0].host.data_ptr()] for index, units in enumerate(stream._units)})


def test_each_step_copies_the_blocks_once_for_both_branches_and_those_that_stay_once_an_edit(
    make_plan, adapters, staying, monkeypatch
):
    staying(3)
    streamed = engine(offload="stream")
    plan = make_plan(model=TEXT_TO_IMAGE.id, control_images=(), steps=5, adapters=(use(adapters[0]),))
    for guidance in (4.0, 1.0):
        counts = copied_in(streamed, monkeypatch, replace(plan, guidance_scale=guidance))
        stay = evenly(3, BLOCKS)
        assert [counts[index] for index in stay] == [1, 1, 1]
        # The first blocks are copied once more, for a step that does not come.
        assert all(counts[index] in (5, 6) for index in counts.keys() - set(stay))
    staying(BLOCKS)
    assert set(copied_in(streamed, monkeypatch, plan).values()) == {1}


def test_weights_wait_in_host_memory_between_edits_and_the_head_is_never_copied(make_plan, staying):
    staying(0)
    streamed = engine(offload="stream")
    plan = make_plan(model=TEXT_TO_IMAGE.id, control_images=())
    before = streamed._pipeline.transformer.state_dict()
    streamed.edit(plan, [])
    placement = streamed._denoiser.placement
    placement._close()
    after = streamed._pipeline.transformer.state_dict()
    assert all(before[name].data_ptr() == value.data_ptr() for name, value in after.items())
    assert not any(part.is_open for part in placement._parts.values())


def test_failed_edit_gives_the_memory_back_and_the_next_one_is_right(make_plan, adapters, staying):
    staying(3)
    resident, streamed = engine(), engine(offload="stream")
    plan = make_plan(model=TEXT_TO_IMAGE.id, control_images=(), adapters=(use(adapters[0]),))
    for module in (
        streamed._pipeline.transformer.transformer_blocks[4].attn,
        streamed._pipeline.text_encoder.model.language_model.layers[2].mlp,
        streamed._pipeline.vae.decoder.conv_out,
    ):
        run_out_of_memory_once(module)
        with pytest.raises(OutOfMemory):
            streamed.edit(replace(plan, prompt=repr(module)), [])
        assert streamed._denoiser.placement._open is None
        assert np.array_equal(pixels(streamed, plan), pixels(resident, plan))


class LateCopies(CopyStream):
    """Copies happen only when somebody waits for them: whoever does not wait computes with other weights."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.done = 0

    def copy(self, block: Tensor, host: Tensor) -> None:
        self.pending.append((block, host))

    def mark(self) -> int:
        return len(self.pending)

    def wait(self, mark: int | None) -> None:
        mark = mark or 0
        for block, host in self.pending[self.done : mark]:
            block.copy_(host)
        self.done = max(self.done, mark)

    def follow(self) -> None:
        pass


@pytest.mark.parametrize(("stay", "slots"), [(0, 2), (3, 2), (5, 2), (BLOCKS, 0), (BLOCKS - 1, 1)])
def test_each_layer_waits_for_its_copy_and_keeps_it_while_it_computes(stay, slots):
    layers = [nn.Linear(4, 4) for _ in range(BLOCKS)]
    for number, layer in enumerate(layers):
        nn.init.constant_(layer.weight, number)
    units = [[Unit(dict(layer.named_parameters()), pinned=False)] for layer in layers]
    stream = LayerStream(layers, units, LateCopies(), NoChanges())
    blocks = [torch.full((units[0][0].size,), 255, dtype=torch.uint8) for _ in range(stay + slots)]
    stream.open(dict(zip(evenly(stay, BLOCKS), blocks, strict=False)), blocks[stay:])
    seen = []
    # Two branches for two passes, then one; the fourth pass breaks off.
    for branches, length in ((2, BLOCKS), (2, BLOCKS), (1, BLOCKS), (2, 4), (2, BLOCKS)):
        for number, layer in enumerate(layers[:length]):
            for _ in range(branches):
                layer(torch.ones(1, 4))
                seen.append(set(layer.weight.unique().tolist()) == {number})
    assert len(seen) == 2 * BLOCKS + 2 * BLOCKS + BLOCKS + 8 + 2 * BLOCKS
    assert all(seen)


def test_layer_outside_of_its_stage_is_refused(make_plan):
    streamed = engine(offload="stream")
    with pytest.raises(RuntimeError, match="outside of its stage"):
        streamed._pipeline.transformer.transformer_blocks[0](hidden_states=None)


def test_as_many_layers_stay_as_the_memory_allows():
    assert [streaming.stays([10] * 6, room) for room in (-5, 0, 9, 10, 39, 40, 1000)] == [0, 0, 0, 1, 3, 6, 6]
    assert evenly(2, 6) == [2, 5]
    assert evenly(6, 6) == [*range(6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "fp8"}, "quantization: not with offload"),
        ({"feature_cache": 0.1}, "feature_cache: not with offload"),
        ({"prepare_ahead": True}, "prepare_ahead: not with offload"),
        ({"adapter_weights": "host"}, "adapter_weights: only auto with offload: stream"),
        ({"adapter_weights": "hooks"}, "adapter_weights: only auto with offload: stream"),
        ({"gpus_per_replica": 2, "device": "cuda"}, "gpus_per_replica: more than one need"),
        ({"offload": "none", "device_memory_gib": 8}, "device_memory_gib: only with offload: stream"),
    ],
)
def test_what_does_not_combine_with_streaming_is_refused_by_name(options, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{"offload": "stream"} | options)
