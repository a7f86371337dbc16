"""Every way in which people's adapter files are written: understood, applied by its definition, or refused by name."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.adapters.changes import Adapter, read_changes
from serve_app.adapters.formats import read_layout
from serve_app.adapters.weights import write_weight
from serve_app.config import ModelConfig
from serve_app.engine import Engine
from serve_app.errors import LoraIncompatible, LoraInvalidFile
from serve_app.models import checkpoint, miniature
from serve_app.models.architecture import BLOCK_LINEARS, MINIATURE_ARCHITECTURE
from serve_app.models.registry import MODELS
from tests.conftest import THREADS
from tests.engine.conftest import use

LINEARS = MINIATURE_ARCHITECTURE.linears
TOP_LEVEL = ("img_in", "txt_in", "proj_out", "norm_out.linear", "time_text_embed.timestep_embedder.linear_1")
SOME = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.img_mlp.net.0.proj",
    "transformer_blocks.1.attn.to_out.0",
)

Tensors = dict[str, Tensor]
# The tensors of one module by part, and what they mean, in float64.
Maker = Callable[[int, int, int], tuple[Tensors, Tensor]]


def random(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.3


def lora(out: int, into: int, rank: int, alpha: float | None = None) -> tuple[Tensors, Tensor]:
    parts = {"up": random(out, rank), "down": random(rank, into)}
    meaning = parts["up"].double() @ parts["down"].double() * (1.0 if alpha is None else alpha / rank)
    return parts | ({} if alpha is None else {"alpha": torch.tensor(alpha)}), meaning


def lokr(low_left: bool, low_right: bool, alpha: float | None) -> Maker:
    def make(out: int, into: int, rank: int) -> tuple[Tensors, Tensor]:
        parts: Tensors = {}
        sides = []
        for name, shape, low in (("w1", (4, 4), low_left), ("w2", (out // 4, into // 4), low_right)):
            if low:
                parts |= {f"{name}_a": random(shape[0], rank), f"{name}_b": random(rank, shape[1])}
                sides.append(parts[f"{name}_a"].double() @ parts[f"{name}_b"].double())
            else:
                parts[name] = random(*shape)
                sides.append(parts[name].double())
        if alpha is not None:
            parts["alpha"] = torch.tensor(alpha)
        factor = alpha / rank if alpha is not None and (low_left or low_right) else 1.0
        return parts, torch.kron(*sides) * factor

    return make


def full(out: int, into: int, rank: int) -> tuple[Tensors, Tensor]:
    difference = random(out, into)
    return {"diff": difference}, difference.double()


def with_alpha(alpha: float) -> Maker:
    return lambda out, into, rank: lora(out, into, rank, alpha)


PEFT = {"up": ".lora_B.weight", "down": ".lora_A.weight", "alpha": ".alpha"}
PEFT_DEFAULT = {"up": ".lora_B.default.weight", "down": ".lora_A.default.weight"}
KOHYA = {"up": ".lora_up.weight", "down": ".lora_down.weight", "alpha": ".alpha"}
DIFFUSERS_OLD = {"up": ".lora.up.weight", "down": ".lora.down.weight"}
LOKR = {part: f".lokr_{part}" for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")} | {"alpha": ".alpha"}
FULL = {"diff": ".diff", "diff_b": ".diff_b"}

EVERY = tuple(f"transformer_blocks.{block}.{name}" for block in range(2) for name in BLOCK_LINEARS)
# The row of the table: prefix, endings, dots as underscores, what a module holds, which modules.
FORMATS: dict[str, tuple[str, dict[str, str], bool, Maker, tuple[str, ...]]] = {
    "the trainer's": ("diffusion_model.", PEFT, False, lora, EVERY),
    "the trainer's with top-level modules": ("diffusion_model.", PEFT, False, lora, EVERY + TOP_LEVEL),
    "diffusers": ("transformer.", PEFT, False, lora, SOME),
    "kohya": ("lora_unet_", KOHYA, True, with_alpha(2.0), SOME + TOP_LEVEL),
    "lightning": ("", KOHYA, False, with_alpha(8.0), SOME),
    "down/up with alpha": ("diffusion_model.", KOHYA, False, with_alpha(1.5), SOME),
    "A/B with alpha": ("diffusion_model.", PEFT, False, with_alpha(3.0), SOME),
    "default adapter of PEFT": ("diffusion_model.", PEFT_DEFAULT, False, lora, SOME),
    "bare without alpha": ("", PEFT, False, lora, SOME),
    "PEFT's own": ("base_model.model.", PEFT, False, lora, SOME),
    "older diffusers": ("transformer.", DIFFUSERS_OLD, False, lora, SOME),
    "LoKr, whole": ("diffusion_model.", LOKR, False, lokr(False, False, None), EVERY),
    "LoKr, whole, alpha inf": ("diffusion_model.", LOKR, False, lokr(False, False, float("inf")), SOME),
    "LoKr, right of low rank": ("diffusion_model.", LOKR, False, lokr(False, True, 1.0), SOME),
    "LoKr, left of low rank": ("diffusion_model.", LOKR, False, lokr(True, False, 2.0), SOME),
    "LoKr, both of low rank": ("diffusion_model.", LOKR, False, lokr(True, True, 1.0), SOME),
    "LoKr, both of low rank, no alpha": ("diffusion_model.", LOKR, False, lokr(True, True, None), SOME),
    "LoKr, old": ("lycoris_", LOKR, True, lokr(False, True, 1.0), SOME),
    "full difference": ("diffusion_model.", FULL, False, full, SOME),
}


def make_file(name: str) -> tuple[Tensors, dict[str, Tensor]]:
    """A file's tensors, of mixed ranks, and the meaning of each module in float64."""
    torch.manual_seed(7)
    prefix, endings, underscored, make, modules = FORMATS[name]
    tensors, meanings = {}, {}
    for i, module in enumerate(modules):
        parts, meanings[module] = make(*LINEARS[module], 2 + i % 3)
        written = module.replace(".", "_") if underscored else module
        tensors |= {f"{prefix}{written}{endings[part]}": tensor for part, tensor in parts.items()}
    return tensors, meanings


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_change_is_the_definition_in_float64(name):
    tensors, meanings = make_file(name)
    layout = read_layout(shapes(tensors), LINEARS)
    assert layout.faults == {}
    assert layout.modules.keys() == meanings.keys()
    changes = Adapter(read_changes(layout, tensors), pinned=False).changes
    for module, meaning in meanings.items():
        assert torch.allclose(changes[module].weight(torch.float64), meaning, rtol=1e-6, atol=0)


@pytest.fixture
def picture_of(bench, make_plan):
    """The text-to-image miniature, which is quick."""

    def picture_of(*uses) -> np.ndarray:
        plan = make_plan(model="qwen_image", control_images=(), adapters=uses)
        return np.asarray(bench("qwen_image").engine.edit(plan, []).image).astype(int)

    return picture_of


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_changes_the_picture(picture_of, tmp_path, name):
    path = tmp_path / "adapter.safetensors"
    save_file(make_file(name)[0], path)
    base = picture_of()
    assert np.abs(picture_of(use(path, 2.0)) - base).mean() > 0.5
    assert np.array_equal(picture_of(use(path, 0.0)), base)


def refused(tensors: Tensors) -> dict[str, str]:
    layout = read_layout(shapes(tensors), LINEARS)
    assert layout.faults
    return layout.faults


Q = "diffusion_model.transformer_blocks.0.attn.to_q"
GOOD = {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(16, 2)}


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({f"{Q}.dora_scale": torch.ones(1, 16)}, "DoRA is not a difference"),
        ({f"{Q}.magnitude": torch.ones(16)}, "DoRA is not a difference"),
        ({f"{Q}.lora_magnitude_vector.weight": torch.ones(16)}, "DoRA is not a difference"),
        ({f"{Q}.hada_w1_a": torch.ones(16, 2)}, "LoHa is not a difference"),
        ({"unet.down_blocks.0.to_q.lora_A.weight": torch.ones(2, 16)}, "the model has no such module"),
        ({"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 16)}, "the model has no such module"),
        ({f"{Q.replace('.0.', '.7.')}.lora_A.weight": torch.ones(2, 16)}, "the model has no such module"),
        ({f"{Q}.something": torch.ones(2)}, "no known part of an adapter"),
        ({f"{Q.replace('to_q', 'to_k')}.lora_A.weight": torch.ones(2, 16)}, "incomplete: down alone"),
        ({f"{Q.replace('to_q', 'to_k')}.alpha": torch.ones(())}, "an alpha alone"),
        ({f"{Q}.diff": torch.ones(16, 16)}, "of several kinds at once: full, lora"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 16)}, "says again what"),
        ({f"{Q.replace('to_q', 'to_k')}.diff": torch.ones(16, 999)}, "its change is 16x999, the model's module 16x16"),
        ({f"{Q.replace('to_q', 'to_k')}.diff_b": torch.ones(9)}, "its change is 9, the model's module 16x16"),
        ({f"{Q.replace('to_q', 'to_k')}.lokr_w1": torch.ones(4, 4)}, "incomplete: w1 alone"),
    ],
)
def test_what_cannot_be_applied_exactly_is_named_with_its_reason(extra, reason):
    faults = refused(GOOD | extra)
    key = next(iter(extra))
    assert reason in faults[key]


def test_rank_that_does_not_match_is_refused():
    bad = {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(16, 3)}
    assert set(refused(bad).values()) == {"its change is no matrix, the model's module 16x16"}


def test_embedding_beside_a_lora_is_ignored_and_told():
    layout = read_layout(shapes(GOOD | {"emb_params": torch.ones(4, 32)}), LINEARS)
    assert (layout.faults, layout.ignored, list(layout.modules)) == (
        {},
        ["emb_params"],
        [Q.removeprefix("diffusion_model.")],
    )


def test_file_that_changes_nothing_is_refused(picture_of, tmp_path):
    save_file({"emb_params": torch.ones(4, 32)}, tmp_path / "nothing.safetensors")
    with pytest.raises(LoraIncompatible, match="changes nothing"):
        picture_of(use(tmp_path / "nothing.safetensors"))


def test_alpha_that_is_no_number_is_refused(picture_of, tmp_path):
    save_file(GOOD | {f"{Q}.alpha": torch.tensor(float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(LoraInvalidFile, match="alpha that is no number"):
        picture_of(use(tmp_path / "nan.safetensors"))


def test_linears_are_those_of_the_model(bench):
    modules = bench("qwen_image_edit").pipeline.transformer.named_modules()
    found = {name: tuple(m.weight.shape) for name, m in modules if isinstance(m, torch.nn.Linear)}
    assert found == LINEARS


# What diffusers 0.42.1 loads without a warning, alpha and all.
LOADED_BY_PEFT = (
    "the trainer's",
    "diffusers",
    "kohya",
    "lightning",
    "down/up with alpha",
    "A/B with alpha",
    "default adapter of PEFT",
)


@pytest.mark.parametrize("name", LOADED_BY_PEFT)
def test_pefts_own_result_is_within_roundings_of_ours_in_bf16(tmp_path, name):
    """PEFT rounds the product, then its scaled value, then the sum; ours rounds the sum alone."""
    tensors, meanings = make_file(name)
    tensors = {key: t if key.endswith(".alpha") else t.bfloat16() for key, t in tensors.items()}
    save_file(tensors, tmp_path / "adapter.safetensors")
    pipeline = checkpoint.read(miniature.ensure(MODELS["qwen_image"]), torch.bfloat16)
    ours = {name: pipeline.transformer.get_submodule(name).weight.clone() for name in meanings}
    changes = read_changes(read_layout(shapes(tensors), LINEARS), tensors)
    for module, weight in ours.items():
        write_weight(weight, weight.clone(), [(changes[module], 0.8)])
    pipeline.load_lora_weights(str(tmp_path / "adapter.safetensors"), adapter_name="one")
    pipeline.fuse_lora(lora_scale=0.8)
    for module, weight in ours.items():
        peft = pipeline.transformer.get_submodule(module).base_layer.weight
        pair = changes[module]
        # Half a unit in the last place is 2^-8 of a value: one for each sum, and four for PEFT's factors and products.
        terms = 0.8 * pair.factor * (pair.up.double().abs() @ pair.down.double().abs())
        bound = 2**-8 * (peft.double().abs() + weight.double().abs() + 4 * terms)
        assert ((peft.double() - weight.double()).abs() <= bound).all()


def test_hooks_give_the_picture_of_merged_weights_but_for_one_grey_level(bench, make_plan, tmp_path):
    save_file(make_file("kohya")[0], tmp_path / "adapter.safetensors")
    merged = bench("qwen_image").engine
    pipeline = checkpoint.read(miniature.ensure(MODELS["qwen_image"]), torch.float32)
    hooked = Engine(pipeline, MODELS["qwen_image"], ModelConfig(threads=THREADS, adapter_weights="hooks"))
    for scale in (1.0, 0.5, 0.0, -1.0):
        plan = make_plan(
            model="qwen_image", control_images=(), adapters=(use(tmp_path / "adapter.safetensors", scale),)
        )
        ours, theirs = (np.asarray(engine.edit(plan, []).image).astype(int) for engine in (merged, hooked))
        assert np.abs(ours - theirs).max() <= 1
    assert hooked.edit(plan, []).runtime["adapter_weights"] == "hooks"
    save_file(make_file("LoKr, whole")[0], tmp_path / "lokr.safetensors")
    plan = make_plan(model="qwen_image", control_images=(), adapters=(use(tmp_path / "lokr.safetensors"),))
    with pytest.raises(LoraIncompatible, match="only LoRA files can be applied without a copy"):
        hooked.edit(plan, [])
