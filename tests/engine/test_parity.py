"""Equal, bit for bit, to diffusers' own `QwenImageEditPipeline.__call__` with the reference's embeddings."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import QwenImageEditPipeline

from serve_app.models import conditioning, miniature
from serve_app.models.denoise import noise, schedule
from serve_app.models.profile import PROFILES, Profile
from tests.conftest import as_png, noise_picture
from tests.engine.conftest import use
from tests.engine.oracle import reference_edit, reference_inputs

SHAPES = {"square": (80, 80), "landscape": (120, 80), "portrait": (64, 200)}
REFERENCE = PROFILES["reference"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def oracle() -> QwenImageEditPipeline:
    pipeline = QwenImageEditPipeline.from_pretrained(miniature.ensure())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("guidance", "negative"), [(4.0, ""), (2.5, "blurry"), (1.0, "")])
def test_picture_is_the_pipelines(engine, oracle, make_plan, shape, guidance, negative):
    picture = noise_picture(*SHAPES[shape])
    plan = make_plan(width=128, height=96, guidance_scale=guidance, negative_prompt=negative, seed=7)
    expected = reference_edit(
        oracle,
        picture,
        prompt=plan.prompt,
        negative=negative,
        width=128,
        height=96,
        steps=plan.steps,
        guidance=guidance,
        seed=7,
    )
    made = engine.edit(plan, [as_png(picture)]).image
    assert np.array_equal(np.asarray(made), np.asarray(expected))


def test_picture_with_a_lora_is_the_pipelines(engine, make_plan, loras):
    pipeline = QwenImageEditPipeline.from_pretrained(miniature.ensure())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(loras[0]), adapter_name="one")
    pipeline.set_adapters(["one"], [0.7])
    picture = noise_picture(80, 80)
    plan = make_plan(adapters=(use(loras[0], 0.7),))
    expected = reference_edit(
        pipeline, picture, prompt=plan.prompt, negative="", width=96, height=64, steps=2, guidance=4.0, seed=42
    )
    made = np.asarray(engine.edit(plan, [as_png(picture)]).image)
    assert np.array_equal(made, np.asarray(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_embeddings_are_the_pipelines(oracle, shape):
    picture = noise_picture(*SHAPES[shape])
    expected, mask = reference_inputs(oracle, picture, "a red hat")
    assert mask is None
    seen = conditioning.encoder_image(picture, REFERENCE, CPU, torch.float32)
    with torch.no_grad():
        assert torch.equal(conditioning.encode_prompt(oracle, "a red hat", seen), expected)


def test_encoder_sees_an_almost_black_picture(oracle):
    seen = conditioning.encoder_image(PIL.Image.new("RGB", (64, 64), "white"), REFERENCE, CPU, torch.float32)
    pixels = oracle.processor.image_processor(images=seen, return_tensors="pt")["pixel_values"]
    assert pixels.max() < -1.4


def test_control_latents_are_the_pipelines(oracle):
    picture = noise_picture(120, 80)
    pixels = conditioning.control_pixels(oracle, picture, 128, 96, REFERENCE)
    resized = picture.resize((128, 96), PIL.Image.Resampling.LANCZOS)
    expected = oracle.image_processor.preprocess(
        oracle.image_processor.resize(resized, pixels.shape[-2], pixels.shape[-1]), *pixels.shape[-2:]
    ).unsqueeze(2)
    assert torch.equal(pixels, expected)
    with torch.no_grad():
        _, latents = oracle.prepare_latents(
            expected, 1, 16, 96, 128, torch.float32, CPU, torch.Generator("cpu").manual_seed(0)
        )
        assert torch.equal(conditioning.encode_control(oracle, pixels), latents)


def test_noise_is_the_pipelines(oracle):
    expected, _ = oracle.prepare_latents(
        None, 1, 16, 96, 128, torch.float32, CPU, torch.Generator("cpu").manual_seed(2**63 - 1)
    )
    assert torch.equal(noise(2**63 - 1, 128, 96, CPU, torch.float32), expected)


def test_packing_is_undone():
    latents = torch.randn(1, 16, 1, 12, 8)
    assert torch.equal(conditioning.unpack(conditioning.pack(latents), 64, 96), latents)


@pytest.mark.parametrize("steps", [2, 8, 25])
def test_sigmas_end_at_the_terminal_and_start_at_one(steps):
    sigmas = schedule(steps, 4096, CPU).sigmas
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 1.0
    assert sigmas[-2].item() == pytest.approx(0.02)
    assert sigmas[-1] == 0.0


def test_single_step_is_finite(engine, make_plan, control_png):
    """The published scheduler divides zero by zero there, and gives a picture of one colour."""
    assert schedule(1, 4096, CPU).sigmas.tolist() == [1.0, 0.0]
    picture = np.asarray(engine.edit(make_plan(steps=1), [control_png]).image)
    assert picture.std() > 1


@pytest.mark.parametrize(
    "flipped",
    [Profile("x", encoder_sides_swapped=False, control_resample="lanczos"), Profile("x", True, "bilinear")],
    ids=["encoder_sides_swapped", "control_resample"],
)
def test_each_flag_governs_its_own_tensor(oracle, flipped):
    picture = noise_picture(120, 80)

    def tensors(profile: Profile) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            conditioning.encoder_image(picture, profile, CPU, torch.float32),
            conditioning.control_pixels(oracle, picture, 128, 96, profile),
        )

    ours, theirs = tensors(REFERENCE), tensors(flipped)
    same = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)]
    changes_encoder = flipped.encoder_sides_swapped != REFERENCE.encoder_sides_swapped
    assert same == [not changes_encoder, changes_encoder]


def test_prompt_negative_seed_and_control_image_each_change_the_picture(engine, make_plan, control_png):
    """What makes an equality above mean something: none of these is ignored."""

    def picture(data: bytes = control_png, **changes: object) -> np.ndarray:
        return np.asarray(engine.edit(make_plan(**changes), [data]).image)

    base = picture()
    assert np.array_equal(base, picture())
    other = io.BytesIO()
    noise_picture(96, 64, seed=1).save(other, "PNG")
    for changed in (
        picture(prompt="make it day"),
        picture(negative_prompt="blurry"),
        picture(seed=43),
        picture(guidance_scale=2.0),
        picture(data=other.getvalue()),
    ):
        assert not np.array_equal(base, changed)
