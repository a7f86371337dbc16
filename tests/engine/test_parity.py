"""Every stage of an edit equals, bit for bit, two implementations that share no code with the product.

`reference` is compared with diffusers' own `__call__`, `trainer` with a second implementation in straight-line code
(oracle.py). Both drive the same pipeline as the engine, and every tensor that enters or leaves one of its parts is
compared by `torch.equal`, in order and in number.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from transformers import Qwen2_5_VLModel

from serve_app.models.profile import PROFILES
from serve_app.models.recipe import TEXT_TO_IMAGE_MAX_TOKENS, make_recipe, shift_of, sigmas_of
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, conditioning, miniature
from serve_app.pipeline.denoise import noise, schedule
from serve_app.pipeline.guidance import guide
from tests.conftest import as_png, noise_image
from tests.engine.once import computed_once, encode_once
from tests.engine.oracle import edit_by_oracle, merge_lora
from tests.engine.pipelines import CPU, EDIT, Bench, use
from tests.engine.recorder import differences, record

SQUARE, LANDSCAPE, PORTRAIT, TALL = (80, 80), (120, 80), (64, 200), (40, 120)
# The trainer's edit plus resizes an image twice for the negative prompt. For this size, the second resize changes it.
UNSTABLE = (640, 256)


@dataclass(frozen=True)
class Case:
    model: str
    images: tuple[tuple[int, int], ...]
    guidance: float = 4.0
    negative: str = ""
    size: tuple[int, int] = (128, 96)
    prompt: str = "make it night"

    def __str__(self) -> str:
        shapes = "+".join(f"{width}x{height}" for width, height in self.images)
        return f"{self.model}-{shapes}-{self.guidance:g}-{self.negative or 'none'}"


GUIDANCES = ((4.0, ""), (2.5, "blurry"), (1.0, ""))
CASES = (
    *(Case("qwen_image_edit", (LANDSCAPE,), *g) for g in GUIDANCES),
    *(Case("qwen_image_edit", (shape,)) for shape in (SQUARE, PORTRAIT)),
    *(Case("qwen_image_edit_plus", (shape,)) for shape in (SQUARE, LANDSCAPE, PORTRAIT)),
    Case("qwen_image_edit_plus", (UNSTABLE,), 2.5, "blurry"),
    Case("qwen_image_edit_plus", (LANDSCAPE, TALL)),
    Case("qwen_image_edit_plus", (LANDSCAPE, UNSTABLE, SQUARE), 2.5, "blurry"),
    Case("qwen_image_edit_plus", (PORTRAIT, SQUARE), 1.0),
    Case("qwen_image_edit_plus_2511", (LANDSCAPE,)),
    Case("qwen_image_edit_plus_2511", (LANDSCAPE, TALL), 1.0, size=(96, 160)),
    *(Case("qwen_image", (), *g) for g in GUIDANCES),
    Case("qwen_image", (), prompt="a fox " * 200, negative="blur " * 200),
    Case("qwen_image_2512", (), size=(96, 160)),
)

# Every pipeline class and 2511's `zero_cond_t`, with a negative prompt, with an empty one and without guidance. CASES
# covers other sizes and long prompts in fp32; they do not depend on the dtype.
BF16_CASES = (
    Case("qwen_image_edit", (LANDSCAPE,), 2.5, "blurry"),
    Case("qwen_image_edit_plus", (LANDSCAPE, UNSTABLE), 4.0),
    Case("qwen_image_edit_plus_2511", (LANDSCAPE,), 2.5, "blurry"),
    Case("qwen_image", (), 4.0, "blurry"),
    Case("qwen_image_edit", (SQUARE,), 1.0),
)


def plan_for(case: Case, make_plan, **changes: object):
    width, height = case.size
    fields = {"model": case.model, "guidance_scale": case.guidance, "negative_prompt": case.negative, "seed": 7}
    fields |= {"width": width, "height": height, "prompt": case.prompt}
    return make_plan(**fields | {"control_images": ("0" * 64,) * len(case.images)} | changes)


def images_of(case: Case) -> list[PIL.Image.Image]:
    return [noise_image(*size, seed=seed) for seed, size in enumerate(case.images)]


@pytest.mark.parametrize("profile", ["reference", "trainer"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_stage_is_the_oracles(bench, make_plan, case, profile):
    first_of_its_model = next(each for each in CASES if each.model == case.model)
    afresh = profile == "reference" and case == first_of_its_model
    assert_equal_to_oracle(bench(case.model), make_plan, case, profile, afresh=afresh)


@pytest.mark.parametrize("profile", ["reference", "trainer"])
@pytest.mark.parametrize("case", BF16_CASES, ids=str)
def test_every_stage_is_the_oracles_in_bf16(bench, make_plan, case, profile):
    """GPUs compute in bf16, which shows differences in rounding that fp32 hides."""
    assert_equal_to_oracle(bench(case.model, torch.bfloat16), make_plan, case, profile)


def assert_equal_to_oracle(bench: Bench, make_plan, case: Case, profile: str, *, afresh: bool = False) -> None:
    """Both are given the same results of the parts for the same inputs; with `afresh`, each computes everything."""
    pipeline, engine = bench.pipeline, bench.engine
    images, plan = images_of(case), plan_for(case, make_plan, profile=profile)
    with bench.encoder.afresh() if afresh else computed_once(pipeline.transformer, pipeline.vae.decoder):
        # The engine goes first: it removes adapters that an earlier test left in the weights.
        with record(pipeline) as ours:
            made = engine.edit(plan, [as_png(image) for image in images])
        with record(pipeline) as theirs:
            expected = edit_by_oracle(pipeline, plan, images)
    assert differences(ours, theirs) == []
    assert np.array_equal(np.asarray(made.image), np.asarray(expected))
    forwards = sum(name == "hidden_states" for name, _ in ours)
    assert forwards == made.effective["forwards"] == plan.steps * (2 if case.guidance > 1 else 1)
    sigmas = next(value for name, value in ours if name == "sigmas")
    assert made.effective["scheduler"]["sigmas"] == sigmas.tolist()


# For each flag of a profile: its other value, a case in which it matters, and the first tensor that it changes.
FLAGS = {
    "encoder_sides_swapped": (False, Case("qwen_image_edit", (LANDSCAPE,)), "pixel_values"),
    "encoder_position_ids": ("M-RoPE", Case("qwen_image_edit", (LANDSCAPE,)), "position_ids"),
    "edit_control_kernel": ("bilinear", Case("qwen_image_edit", (LANDSCAPE,)), "vae_pixels"),
    "edit_plus_negative_resized_twice": (True, Case("qwen_image_edit_plus", (UNSTABLE,)), "input_ids"),
    "edit_plus_guidance_rescaled": (False, Case("qwen_image_edit_plus", (SQUARE,)), "guided_prediction"),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_governs_its_own_tensor(bench, make_plan, monkeypatch, flag):
    flipped, case, governed = FLAGS[flag]
    reference = PROFILES["reference"]
    assert getattr(reference, flag) != flipped
    monkeypatch.setitem(PROFILES, "flipped", replace(reference, name="flipped", **{flag: flipped}))
    images = [as_png(image) for image in images_of(case)]
    recordings = []
    for profile in ("reference", "flipped"):
        with record(bench(case.model).pipeline) as events:
            bench(case.model).engine.edit(plan_for(case, make_plan, profile=profile), images)
        recordings.append(events)
    ours, theirs = recordings
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert differences(ours, theirs)[0] == governed


def test_flag_of_the_negative_leaves_the_prompts_own_image_alone(bench, make_plan):
    case = FLAGS["edit_plus_negative_resized_twice"][1]
    recipes = {
        profile: make_recipe(MODELS[case.model], PROFILES[profile], plan_for(case, make_plan), case.images)
        for profile in ("trainer", "reference")
    }
    assert recipes["trainer"].encoder_sizes == (((608, 256),),)
    assert recipes["trainer"].negative_encoder_sizes == (((608, 256), (576, 256)),)
    assert recipes["reference"].negative_encoder_sizes == recipes["reference"].encoder_sizes == (((256, 608),),)


def test_every_flag_of_a_profile_is_flipped_by_a_test():
    # The plan decides the sizes of text-to-image images: tests/unit/test_plan.py covers text_to_image_divisor.
    assert {*FLAGS, "text_to_image_divisor", "name"} == set(PROFILES["reference"].__dataclass_fields__)


@pytest.mark.parametrize("shapes", [(LANDSCAPE,), (PORTRAIT, SQUARE), (TALL, LANDSCAPE, UNSTABLE)], ids=str)
def test_m_rope_ids_are_those_that_transformers_computes(bench, make_plan, shapes):
    case = Case("qwen_image_edit_plus", shapes)
    pipeline = bench(case.model).pipeline
    recipe = make_recipe(MODELS[case.model], PROFILES["trainer-0.9.0"], plan_for(case, make_plan), shapes)
    images = [
        conditioning.encoder_image(image, sizes, CPU, torch.float32)
        for image, sizes in zip(images_of(case), recipe.encoder_sizes, strict=True)
    ]
    text = pipeline.prompt_template_encode.format(recipe.prompt_prefix + "at night")
    inputs = pipeline.processor(text=[text], images=images, padding=True, return_tensors="pt")
    ids, grids, config = inputs["input_ids"], inputs["image_grid_thw"], pipeline.text_encoder.config
    model: Qwen2_5_VLModel = pipeline.text_encoder.model
    kinds = (ids == config.image_token_id).int()
    expected, _ = model.get_rope_index(ids, kinds, image_grid_thw=grids)
    assert torch.equal(conditioning.positions(ids, grids, config, recipe), expected)


def lora_images(bench, make_plan, path, scale: float, apply: Callable[[Any], None]) -> tuple[np.ndarray, np.ndarray]:
    """The engine's image with a LoRA, and diffusers' image after `apply` has changed its pipeline."""
    case = Case("qwen_image_edit", (SQUARE,))
    plan = plan_for(case, make_plan, adapters=(use(path, scale),))
    made = bench(case.model).engine.edit(plan, [as_png(noise_image(*SQUARE))]).image
    # A pipeline of its own, not the bench's: `apply` changes its weights for good.
    pipeline = checkpoint.read(miniature.checkpoint_folder(EDIT), torch.float32)
    encode_once(pipeline.vae)
    apply(pipeline)
    expected = edit_by_oracle(pipeline, plan, [noise_image(*SQUARE)])
    return np.asarray(made).astype(int), np.asarray(expected).astype(int)


def test_image_with_a_lora_is_that_of_merged_weights(bench, make_plan, loras):
    made, expected = lora_images(bench, make_plan, loras[0], 0.7, lambda p: merge_lora(p, loras[0], 0.7))
    assert np.array_equal(made, expected)


def test_image_with_a_lora_is_within_one_grey_level_of_pefts_layers(bench, make_plan, loras):
    def apply(pipeline) -> None:
        pipeline.load_lora_weights(str(loras[0]), adapter_name="one")
        pipeline.set_adapters(["one"], [0.7])

    made, expected = lora_images(bench, make_plan, loras[0], 0.7, apply)
    assert np.abs(made - expected).max() <= 1


def test_encoder_sees_an_almost_black_image(bench):
    white = conditioning.encoder_image(PIL.Image.new("RGB", (64, 64), "white"), [(64, 64)], CPU, torch.float32)
    processor = bench("qwen_image_edit").pipeline.processor
    assert processor.image_processor(images=white, return_tensors="pt")["pixel_values"].max() < -1.4


def test_vae_tiling_changes_only_the_image_that_asks_for_it(bench, make_plan):
    """The next edit, without tiling, gives the first image again."""
    case = Case("qwen_image", (), size=(320, 320))
    engine = bench(case.model).engine
    whole, tiled, again = (
        np.asarray(engine.edit(plan_for(case, make_plan, vae_tiling=tiling), []).image).astype(int)
        for tiling in (False, True, False)
    )
    assert np.array_equal(whole, again)
    assert not np.array_equal(whole, tiled)


def test_long_prompt_is_cut_for_text_to_image_only(bench, make_plan):
    lengths = {}
    for model, shapes in (("qwen_image", ()), ("qwen_image_edit", (SQUARE,))):
        case = Case(model, shapes, guidance=1.0, prompt="x" * 900)
        with record(bench(model).pipeline) as events:
            bench(model).engine.edit(plan_for(case, make_plan), [as_png(p) for p in images_of(case)])
        lengths[model] = next(value for name, value in events if name == "encoder_hidden_states").shape[1]
    assert lengths["qwen_image"] == TEXT_TO_IMAGE_MAX_TOKENS
    assert lengths["qwen_image_edit"] > 900


def test_noise_equals_the_pipelines(bench):
    pipeline = bench("qwen_image_edit").pipeline
    generator = torch.Generator("cpu").manual_seed(2**63 - 1)
    expected, _ = pipeline.prepare_latents(None, 1, 16, 96, 128, torch.float32, CPU, generator)
    assert torch.equal(noise(2**63 - 1, 128, 96, CPU, torch.float32), expected)


def test_unpacking_reverses_packing():
    latents = torch.randn(1, 16, 1, 12, 8)
    assert torch.equal(conditioning.unpack(conditioning.pack(latents), 64, 96), latents)


@pytest.mark.parametrize("tokens", [16, 256, 4096, 65536])
def test_explained_sigmas_are_the_schedulers(tokens):
    assert shift_of(tokens) == calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    for steps in range(1, 151):
        assert sigmas_of(steps, tokens) == schedule(steps, tokens, CPU).sigmas.tolist()


@pytest.mark.parametrize("tokens", [16, 4096])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lightning_has_a_constant_shift_of_three_and_no_terminal_stretch(steps, tokens):
    sigmas = schedule(steps, tokens, CPU, "lightning").sigmas.tolist()
    assert sigmas_of(steps, tokens, "lightning") == sigmas
    levels = [1 - i / steps for i in range(steps)]
    assert sigmas == pytest.approx([*(3 * t / (1 + 2 * t) for t in levels), 0.0], rel=1e-6)


def test_sampler_of_a_request_is_the_one_that_denoises(bench, make_plan):
    case = Case("qwen_image", (), guidance=1.0)
    edited = {
        sampler: bench(case.model).engine.edit(plan_for(case, make_plan, steps=4, sampler=sampler), [])
        for sampler in ("flowmatch", "lightning")
    }
    assert edited["lightning"].effective["scheduler"]["sampler"] == "lightning"
    assert edited["lightning"].effective["scheduler"]["mu"] == math.log(3)
    assert np.asarray(edited["flowmatch"].image).tolist() != np.asarray(edited["lightning"].image).tolist()


@pytest.mark.parametrize("steps", [2, 8, 25])
def test_sigmas_end_at_the_terminal_and_start_at_one(steps):
    sigmas = schedule(steps, 4096, CPU).sigmas
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 1.0
    assert sigmas[-2].item() == pytest.approx(0.02)
    assert sigmas[-1] == 0.0


def test_single_step_is_finite(engine, make_plan, control_png):
    """With one step, the published scheduler divides zero by zero and gives an image of one colour."""
    assert schedule(1, 4096, CPU).sigmas.tolist() == [1.0, 0.0]
    image = np.asarray(engine.edit(make_plan(steps=1), [control_png]).image)
    assert image.std() > 1


def test_rescaled_guidance_has_the_conditional_norm():
    conditional, unconditional = torch.randn(2, 1, 8, 64)
    rescaled = guide(conditional, unconditional, 4.0, rescaled=True)
    plain = guide(conditional, unconditional, 4.0, rescaled=False)
    assert torch.allclose(rescaled.norm(dim=-1), conditional.norm(dim=-1))
    assert not torch.allclose(plain.norm(dim=-1), conditional.norm(dim=-1))


def test_prompt_negative_seed_and_control_image_each_change_the_image(bench, make_plan, control_png):
    """None of these is ignored. Otherwise the comparisons above would prove little."""

    def edited(data: bytes = control_png, **changes: object) -> np.ndarray:
        return np.asarray(bench(EDIT.id).engine.edit(make_plan(steps=1, **changes), [data]).image)

    base = edited()
    assert np.array_equal(base, edited())
    other = io.BytesIO()
    noise_image(96, 64, seed=1).save(other, "PNG")
    for changed in (
        edited(prompt="make it day"),
        edited(negative_prompt="blurry"),
        edited(seed=43),
        edited(guidance_scale=2.0),
        edited(data=other.getvalue()),
    ):
        assert not np.array_equal(base, changed)


def test_each_control_image_of_edit_plus_changes_the_image_and_so_does_their_order(bench, make_plan):
    case = Case("qwen_image_edit_plus", (SQUARE, SQUARE, SQUARE), guidance=1.0)
    first, second, third = (as_png(image) for image in images_of(case))
    other = as_png(noise_image(*SQUARE, seed=9))
    made = [
        np.asarray(bench(case.model).engine.edit(plan_for(case, make_plan, steps=1), images).image)
        for images in (
            [first, second, third],
            [other, second, third],
            [first, other, third],
            [first, second, other],
            [second, first, third],
        )
    ]
    for i, one in enumerate(made):
        assert not any(np.array_equal(one, two) for two in made[i + 1 :])


def test_zero_cond_t_changes_the_image(bench, make_plan):
    """`zero_cond_t` is the difference between 2511 and 2509: their miniatures have the same weights."""
    images = [
        np.asarray(bench(model).engine.edit(make_plan(model=model), [as_png(noise_image(*SQUARE))]).image)
        for model in ("qwen_image_edit_plus", "qwen_image_edit_plus_2511")
    ]
    assert not np.array_equal(*images)
