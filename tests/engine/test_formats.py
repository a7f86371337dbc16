"""Every way in which people's adapter files are written: understood, applied by its definition, or refused by name."""

from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from statistics import median

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from serve_app.adapters.factors import read_factors
from serve_app.adapters.formats import read_layout
from serve_app.adapters.header import Header, read_header
from serve_app.adapters.receipts import read_receipt
from serve_app.config import ModelConfig
from serve_app.engine.adapter_loading import is_finite
from serve_app.engine.deltas import Adapter, Delta, read_deltas
from serve_app.engine.merging import write_sum
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import LoraIncompatible, LoraInvalidFile
from serve_app.models.architecture import BLOCK_LINEARS, MINIATURE_ARCHITECTURE
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from tests.conftest import THREADS
from tests.engine.pipelines import use

LINEARS = MINIATURE_ARCHITECTURE.linears
TOP_LEVEL = ("img_in", "txt_in", "proj_out", "norm_out.linear", "time_text_embed.timestep_embedder.linear_1")
SOME = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.img_mlp.net.0.proj",
    "transformer_blocks.1.attn.to_out.0",
)

NORMS = ("transformer_blocks.0.attn.norm_q", "transformer_blocks.1.attn.norm_added_k", "txt_norm")
PARAMETERS = MINIATURE_ARCHITECTURE.parameters

Tensors = dict[str, Tensor]
# The tensors of one module by part, and what they mean for its parameters, in float64; from its weight's shape and a
# rank.
Maker = Callable[[tuple[int, ...], int], tuple[Tensors, Tensors]]


def random(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.3


def lora(shape: tuple[int, ...], rank: int, alpha: float | None = None) -> tuple[Tensors, Tensors]:
    parts = {"up": random(shape[0], rank), "down": random(rank, shape[1])}
    meaning = parts["up"].double() @ parts["down"].double() * (1.0 if alpha is None else alpha / rank)
    return parts | ({} if alpha is None else {"alpha": torch.tensor(alpha)}), {"weight": meaning}


def lokr(low_left: bool, low_right: bool, alpha: float | None) -> Maker:
    def make(shape: tuple[int, ...], rank: int) -> tuple[Tensors, Tensors]:
        parts: Tensors = {}
        sides = []
        for name, of_side, low in (("w1", (4, 4), low_left), ("w2", (shape[0] // 4, shape[1] // 4), low_right)):
            if low:
                parts |= {f"{name}_a": random(of_side[0], rank), f"{name}_b": random(rank, of_side[1])}
                sides.append(parts[f"{name}_a"].double() @ parts[f"{name}_b"].double())
            else:
                parts[name] = random(*of_side)
                sides.append(parts[name].double())
        if alpha is not None:
            parts["alpha"] = torch.tensor(alpha)
        factor = alpha / rank if alpha is not None and (low_left or low_right) else 1.0
        return parts, {"weight": torch.kron(*sides) * factor}

    return make


def loha(alpha: float | None) -> Maker:
    def make(shape: tuple[int, ...], rank: int) -> tuple[Tensors, Tensors]:
        sizes = {"a": (shape[0], rank), "b": (rank, shape[1])}
        parts = {f"w{n}_{half}": random(*size) for n in "12" for half, size in sizes.items()}
        one, two = (parts[f"w{n}_a"].double() @ parts[f"w{n}_b"].double() for n in "12")
        factor = 1.0 if alpha is None else alpha / rank
        return parts | ({} if alpha is None else {"alpha": torch.tensor(alpha)}), {"weight": one * two * factor}

    return make


def full(shape: tuple[int, ...], rank: int) -> tuple[Tensors, Tensors]:
    difference = random(*shape)
    return {"diff": difference}, {"weight": difference.double()}


def with_alpha(alpha: float) -> Maker:
    return lambda shape, rank: lora(shape, rank, alpha)


def with_diff_b(alpha: float) -> Maker:
    """As ComfyUI's extractor writes them: the bias' difference is added as it is, whatever alpha is."""

    def make(shape: tuple[int, ...], rank: int) -> tuple[Tensors, Tensors]:
        parts, meanings = lora(shape, rank, alpha)
        bias = random(shape[0])
        return parts | {"diff_b": bias}, meanings | {"bias": bias.double()}

    return make


def with_pefts_bias(alpha: float | None) -> Maker:
    """As PEFT's `lora_bias` has it: the second matrix has a bias, which alpha / rank scales too."""

    def make(shape: tuple[int, ...], rank: int) -> tuple[Tensors, Tensors]:
        parts, meanings = lora(shape, rank, alpha)
        bias = random(shape[0])
        return parts | {"bias": bias}, meanings | {"bias": bias.double() * (1.0 if alpha is None else alpha / rank)}

    return make


def bias_alone(shape: tuple[int, ...], rank: int) -> tuple[Tensors, Tensors]:
    bias = random(shape[0])
    return {"diff_b": bias}, {"bias": bias.double()}


PEFT = {"up": ".lora_B.weight", "down": ".lora_A.weight", "alpha": ".alpha", "bias": ".lora_B.bias"}
PEFT_DEFAULT = {"up": ".lora_B.default.weight", "down": ".lora_A.default.weight"}
PEFT_DEFAULT_0 = {
    "up": ".lora_B.default_0.weight",
    "down": ".lora_A.default_0.weight",
    "bias": ".lora_B.default_0.bias",
}
KOHYA = {"up": ".lora_up.weight", "down": ".lora_down.weight", "alpha": ".alpha", "diff_b": ".diff_b"}
DIFFUSERS_OLD = {"up": ".lora.up.weight", "down": ".lora.down.weight"}
LOKR = {part: f".lokr_{part}" for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")} | {"alpha": ".alpha"}
LOHA = {part: f".hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")} | {"alpha": ".alpha"}
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
    "LoHa": ("lycoris_", LOHA, True, loha(1.0), EVERY),
    "LoHa, no alpha": ("diffusion_model.", LOHA, False, loha(None), SOME),
    "full difference": ("diffusion_model.", FULL, False, full, SOME),
    "norms": ("diffusion_model.", FULL, False, full, NORMS),
    "biases alone": ("diffusion_model.", FULL, False, bias_alone, SOME),
    "with biases' differences": ("diffusion_model.", KOHYA, False, with_diff_b(8.0), SOME),
    "with PEFT's biases": ("transformer.", PEFT, False, with_pefts_bias(None), SOME),
    "with PEFT's biases and alpha": ("transformer.", PEFT, False, with_pefts_bias(8.0), SOME),
    "diffusers' default adapter": ("transformer.", PEFT_DEFAULT_0, False, with_pefts_bias(None), SOME),
    "integer alpha": ("lora_unet_", KOHYA, True, with_alpha(4), SOME),
    "ComfyUI's checkpoint prefix": ("model.diffusion_model.", KOHYA, False, with_alpha(2.0), SOME),
    "DiffSynth": ("pipe.dit.", PEFT_DEFAULT, False, lora, SOME),
    "compiled": ("transformer._orig_mod.", PEFT, False, lora, SOME),
    "kohya, compiled": ("lora_unet__orig_mod_", KOHYA, True, with_alpha(2.0), SOME),
}


def make_file(name: str) -> tuple[Tensors, Tensors]:
    """A file's tensors, of mixed ranks, and the meaning for each parameter in float64."""
    torch.manual_seed(7)
    prefix, endings, underscored, make, modules = FORMATS[name]
    tensors, meanings = {}, {}
    for i, module in enumerate(modules):
        parts, of_module = make(PARAMETERS[f"{module}.weight"], 2 + i % 3)
        meanings |= {f"{module}.{parameter}": meaning for parameter, meaning in of_module.items()}
        written = module.replace(".", "_") if underscored else module
        tensors |= {f"{prefix}{written}{endings[part]}": tensor for part, tensor in parts.items()}
    return tensors, meanings


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def header_of(tensors: Tensors, metadata: dict[str, str] | None = None) -> Header:
    data = save(tensors, metadata)
    return read_header(BytesIO(data), len(data), "file")


def deltas_of(tensors: Tensors, metadata: dict[str, str] | None = None) -> dict[str, Delta]:
    """The deltas of a file by parameter, as an editor reads them."""
    header = header_of(tensors, metadata)
    layout = read_layout(header.tensors, PARAMETERS)
    assert layout.faults == {}
    return read_deltas(layout, tensors, {name: f.value for name, f in read_factors(layout, header, "file").items()})


@pytest.mark.parametrize("name", FORMATS)
def test_change_is_the_definition_in_float64(name):
    tensors, meanings = make_file(name)
    deltas = Adapter(deltas_of(tensors), pinned=False).deltas
    assert deltas.keys() == meanings.keys()
    for parameter, meaning in meanings.items():
        assert torch.allclose(deltas[parameter].weight(torch.float64), meaning, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_edit_has_the_definitions_weights_and_the_receipts_factor(bench, make_plan, tmp_path, name):
    """The receipt of the POST, the record of the result and the weights of the edit agree on what the file is."""
    tensors, meanings = make_file(name)
    path = tmp_path / "adapter.safetensors"
    save_file(tensors, path)
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size, path.name)
    receipt = read_receipt(header, path.stat().st_size, path.name, "qwen_image", MINIATURE_ARCHITECTURE)
    adapter = replace(use(path, 0.75), receipt=receipt)
    engine, transformer = bench("qwen_image").engine, bench("qwen_image").pipeline.transformer
    plan = make_plan(model="qwen_image", control_images=(), steps=1, guidance_scale=1.0)
    engine.edit(plan, [])
    before = {parameter: value.detach().double() for parameter, value in transformer.named_parameters()}
    done = engine.edit(replace(plan, adapters=(adapter,)), [])
    for parameter, value in transformer.named_parameters():
        expected = before[parameter] + 0.75 * meanings.get(parameter, torch.zeros(()))
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-7), parameter
    factors = factors_of(name)
    said = asdict(receipt.factor)
    assert (said["min"], said["median"], said["max"]) == pytest.approx(
        (min(factors), median(factors), max(factors)), rel=1e-12
    )
    assert done.effective["loras"][0]["receipt"]["factor"] == said
    assert done.runtime["adapters"][0]["factor"] == said


def factors_of(name: str) -> list[float]:
    """alpha / rank of each module of a format, by its definition."""
    tensors, _ = make_file(name)
    low_rank = any(part in key for key in tensors for part in ("lora", "_a", "_b"))
    alphas = [tensor.double().item() for key, tensor in tensors.items() if key.endswith(".alpha")]
    if not alphas or not low_rank or "whole" in name:
        return [1.0]
    return [alpha / (2 + i % 3) for i, alpha in enumerate(alphas)]


@pytest.fixture
def image_of(bench, make_plan):
    """The text-to-image miniature, which is quick."""

    def image_of(*uses) -> np.ndarray:
        plan = make_plan(model="qwen_image", control_images=(), adapters=uses)
        return np.asarray(bench("qwen_image").engine.edit(plan, []).image).astype(int)

    return image_of


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_changes_the_image(image_of, tmp_path, name):
    path = tmp_path / "adapter.safetensors"
    save_file(make_file(name)[0], path)
    base = image_of()
    assert np.abs(image_of(use(path, 2.0)) - base).mean() > 0.5
    assert np.array_equal(image_of(use(path, 0.0)), base)


def refused(tensors: Tensors) -> dict[str, str]:
    layout = read_layout(shapes(tensors), PARAMETERS)
    assert layout.faults
    return layout.faults


Q = "diffusion_model.transformer_blocks.0.attn.to_q"
K, N = Q.replace("to_q", "to_k"), Q.replace("to_q", "norm_q")
GOOD = {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(16, 2)}


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({f"{Q}.dora_scale": torch.ones(1, 16)}, "DoRA is not a difference"),
        ({f"{Q}.magnitude": torch.ones(16)}, "DoRA is not a difference"),
        ({f"{Q}.lora_magnitude_vector.weight": torch.ones(16)}, "DoRA is not a difference"),
        ({f"{K}.hada_w1_a": torch.ones(16, 2)}, "incomplete: only hada_w1_a"),
        ({f"{K}.hada_t1": torch.ones(2, 2, 3, 3)}, "a Tucker core is for convolutions"),
        ({f"{K}.lokr_t2": torch.ones(2, 2, 3, 3)}, "a Tucker core is for convolutions"),
        ({f"{Q}.oft_blocks": torch.ones(2, 8, 8)}, "OFT is not a difference"),
        ({f"{Q}.alpha": torch.ones(0)}, "its alpha has the shape [0]"),
        ({f"{Q}.alpha": torch.ones(2)}, "its alpha has the shape [2]"),
        ({f"{K}.lora_A.weight": torch.ones(0, 16), f"{K}.lora_B.weight": torch.ones(16, 0)}, "of rank 0"),
        (
            {f"{K}.lokr_w1_a": torch.ones(4, 0), f"{K}.lokr_w1_b": torch.ones(0, 4), f"{K}.lokr_w2": torch.ones(4, 4)},
            "of rank 0",
        ),
        ({f"{K}.lora_A.weight": torch.ones(()), f"{K}.lora_B.weight": torch.ones(())}, "its change is not a matrix"),
        ({f"{Q}.lora_B.bias": torch.ones(9)}, "the change of its bias is 9, the model's bias 16"),
        ({f"{Q}.lora_B.bias": torch.ones(16), f"{Q}.diff_b": torch.ones(16)}, "two changes of one bias"),
        ({f"{K}.lora_B.bias": torch.ones(16)}, "incomplete: only bias"),
        ({f"{N}.diff_b": torch.ones(16)}, "changes a bias, and the model's module has none"),
        ({f"{N}.diff": torch.ones(9)}, "its change is 9, the model's module 16"),
        (
            {f"{N}.lora_A.weight": torch.ones(2, 16), f"{N}.lora_B.weight": torch.ones(16, 2)},
            "its change is 16x16, the model's module 16",
        ),
        (
            {
                "transformer.transformer_blocks.0.attn.to_q.lora_A.default_0.weight": torch.ones(2, 16),
                "transformer.transformer_blocks.0.attn.to_q.lora_B.default_0.weight": torch.ones(16, 2),
            },
            "repeats",
        ),
        ({"unet.down_blocks.0.to_q.lora_A.weight": torch.ones(2, 16)}, "the model has no such module"),
        ({"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 16)}, "the model has no such module"),
        ({f"{Q.replace('.0.', '.7.')}.lora_A.weight": torch.ones(2, 16)}, "the model has no such module"),
        ({f"{Q}.something": torch.ones(2)}, "no known part of an adapter"),
        ({f"{Q.replace('to_q', 'to_k')}.lora_A.weight": torch.ones(2, 16)}, "incomplete: only down"),
        ({f"{Q.replace('to_q', 'to_k')}.alpha": torch.ones(())}, "only an alpha"),
        ({f"{Q}.diff": torch.ones(16, 16)}, "of several kinds at once: full, lora"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 16)}, "repeats"),
        ({f"{Q.replace('to_q', 'to_k')}.diff": torch.ones(16, 999)}, "its change is 16x999, the model's module 16x16"),
        ({f"{Q.replace('to_q', 'to_k')}.diff_b": torch.ones(9)}, "the change of its bias is 9, the model's bias 16"),
        ({f"{Q.replace('to_q', 'to_k')}.lokr_w1": torch.ones(4, 4)}, "incomplete: only w1"),
    ],
)
def test_what_cannot_be_applied_exactly_is_named_with_its_reason(extra, reason):
    faults = refused(GOOD | extra)
    key = next(iter(extra))
    assert reason in faults[key]


def test_rank_that_does_not_match_is_refused():
    bad = {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(16, 3)}
    assert set(refused(bad).values()) == {"its change is not a matrix, the model's module 16x16"}


def test_embedding_in_a_lora_file_is_ignored_and_reported():
    layout = read_layout(shapes(GOOD | {"emb_params": torch.ones(4, 32)}), PARAMETERS)
    assert (layout.faults, layout.ignored, list(layout.modules)) == (
        {},
        ["emb_params"],
        [Q.removeprefix("diffusion_model.")],
    )


def test_file_that_changes_nothing_is_refused(image_of, tmp_path):
    save_file({"emb_params": torch.ones(4, 32)}, tmp_path / "nothing.safetensors")
    with pytest.raises(LoraIncompatible, match="changes nothing"):
        image_of(use(tmp_path / "nothing.safetensors"))


def test_alpha_that_is_not_a_number_is_refused(image_of, tmp_path):
    save_file(GOOD | {f"{Q}.alpha": torch.tensor(float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(LoraInvalidFile, match="alpha that is not a number"):
        image_of(use(tmp_path / "nan.safetensors"))


def test_linears_and_parameters_are_those_of_the_model(bench):
    transformer = bench("qwen_image_edit").pipeline.transformer
    modules = transformer.named_modules()
    found = {name: tuple(m.weight.shape) for name, m in modules if isinstance(m, torch.nn.Linear)}
    assert found == LINEARS
    assert {name: tuple(value.shape) for name, value in transformer.named_parameters()} == PARAMETERS


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
    pipeline = checkpoint.read(miniature.checkpoint_folder(MODELS["qwen_image"]), torch.bfloat16)
    ours = {name: pipeline.transformer.get_parameter(name).clone() for name in meanings}
    deltas = deltas_of(tensors)
    for parameter, weight in ours.items():
        write_sum(weight, weight.clone(), [(deltas[parameter], 0.8)])
    pipeline.load_lora_weights(str(tmp_path / "adapter.safetensors"), adapter_name="one")
    pipeline.fuse_lora(lora_scale=0.8)
    for parameter, weight in ours.items():
        peft = pipeline.transformer.get_submodule(parameter.removesuffix(".weight")).base_layer.weight
        pair = deltas[parameter]
        # Half a unit in the last place is 2^-8 of a value: one for each sum, and four for PEFT's factors and products.
        terms = 0.8 * pair.factor * (pair.up.double().abs() @ pair.down.double().abs())
        bound = 2**-8 * (peft.double().abs() + weight.double().abs() + 4 * terms)
        assert ((peft.double() - weight.double()).abs() <= bound).all()


def test_hooks_give_the_image_of_merged_weights_but_for_one_grey_level(bench, make_plan, tmp_path):
    save_file(make_file("kohya")[0], tmp_path / "adapter.safetensors")
    merged = bench("qwen_image").engine
    pipeline = checkpoint.read(miniature.checkpoint_folder(MODELS["qwen_image"]), torch.float32)
    hooked = TorchEngine(pipeline, MODELS["qwen_image"], ModelConfig(threads=THREADS, adapter_weights="hooks"))
    for scale in (1.0, 0.5, 0.0, -1.0):
        plan = make_plan(
            model="qwen_image", control_images=(), adapters=(use(tmp_path / "adapter.safetensors", scale),)
        )
        ours, theirs = (np.asarray(engine.edit(plan, []).image).astype(int) for engine in (merged, hooked))
        assert np.abs(ours - theirs).max() <= 1
    assert hooked.edit(plan, []).runtime["adapter_weights"] == "hooks"
    refused = {
        "LoKr, whole": r"\.weight by a LoKr",
        "LoHa": r"\.weight by a LoHa",
        "with PEFT's biases": r"\.bias by a full difference",
        "norms": r"norm_\w+\.weight by a full difference",
    }
    for name, reason in refused.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(make_file(name)[0], path)
        plan = make_plan(model="qwen_image", control_images=(), adapters=(use(path),))
        with pytest.raises(LoraIncompatible, match=f"only LoRA files can be applied without a copy.*{reason}"):
            hooked.edit(plan, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_file_with_nan_or_inf_is_refused_before_the_first_step(image_of, tmp_path, value, dtype):
    tensors = {key: tensor.clone() for key, tensor in GOOD.items()}
    tensors[f"{Q}.lora_B.weight"][3, 1] = value
    save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(LoraInvalidFile, match=r"bad.safetensors' holds NaN or Inf in .*to_q.lora_B.weight"):
        image_of(use(tmp_path / "bad.safetensors"))


def test_finite_numbers_whose_sum_overflows_are_finite():
    assert is_finite(torch.full((4, 4), 3e38))
    assert is_finite(torch.full((4, 4), 6e4, dtype=torch.float16))
