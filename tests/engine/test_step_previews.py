"""Step previews of the real engine: they show the image before it is there, and change no pixel of it."""

import json
import math

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from serve_app.config import MINIATURE, MINIATURE_RANDOM, ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from serve_app.pipeline.conditioning import pack
from serve_app.pipeline.denoise import clean_latents
from serve_app.pipeline.latent_colors import KNOWN, LatentColors, fit, known_colors, samples, synthetic_images
from tests.conftest import ROOT, THREADS
from tests.engine.pipelines import CPU, EDIT, own_pipeline, use, watched
from tools.fit_latent_colors import PHOTOGRAPHS, as_json, photograph, psnr_db

EDIT_PLUS = MODELS["qwen_image_edit_plus_2511"]
TEXT_TO_IMAGE = MODELS["qwen_image"]


def psnr(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    error = np.square(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)).mean()
    return 10 * math.log10(255**2 / error)


def smaller(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.reduce(8)


@pytest.fixture(scope="module")
def trained() -> TorchEngine:
    return TorchEngine.load(ModelConfig(threads=THREADS, device="cpu"))


def test_previews_approach_the_image(trained, make_plan):
    picture = PIL.Image.open(ROOT / "tests/photographs/coffee.jpg").convert("RGB").resize((256, 256))
    plan = make_plan(prompt="invert the colours", width=256, height=256, steps=6, guidance_scale=1.0)
    edited, previews = watched(trained, plan, [encode(picture, OUTPUT_FORMATS["png"], {})])
    assert {preview.size for preview in previews.values()} == {(32, 32)}
    found = [psnr(preview, smaller(edited.image)) for preview in previews.values()]
    assert found[0] < found[2] < found[-1]
    # As well as the linear map shows an image that is there.
    assert found[-1] >= 22
    # Not only the control image, which an edit starts to look like.
    assert psnr(previews[6], smaller(picture)) < 12


def test_noise_and_prediction_give_the_clean_latents():
    clean, noise = torch.randn(2, 1, 4, 64)
    for sigma in (1.0, 0.5, 0.02):
        latents = (1 - sigma) * clean + sigma * noise
        assert torch.allclose(clean_latents(latents, noise - clean, torch.tensor(sigma)), clean, atol=1e-6)


def test_pixels_of_a_preview_lie_where_those_of_the_image_do():
    latents = torch.zeros(16, 4, 6)
    latents[0, 1, 4], latents[2, 3, 0] = 1.0, 1.0
    weights = torch.zeros(3, 16)
    weights[0, 0] = weights[2, 2] = 2.0
    colors = LatentColors(weights, torch.full((3, 1), -1.0))
    pixels = np.asarray(colors.image(pack(latents[None, :, None].contiguous()), 48, 32))
    expected = np.zeros((4, 6, 3), dtype=np.uint8)
    expected[1, 4, 0], expected[3, 0, 2] = 255, 255
    assert np.array_equal(pixels, expected)


# One device, eager. In compiled blocks: see test_compiled.
@pytest.mark.parametrize("spec", [EDIT, EDIT_PLUS, TEXT_TO_IMAGE], ids=lambda spec: spec.id)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_watched_edit_has_the_pixels_of_an_unwatched_one(bench, make_plan, control_png, loras, spec, guidance_scale):
    images = [control_png] * min(2, spec.max_control_images)
    changes = {"control_images": ("",) * len(images), "guidance_scale": guidance_scale, "adapters": (use(loras[0]),)}
    plan = make_plan(model=spec.id, steps=3, width=96, height=64, **changes)
    engine = bench(spec.id).engine
    edited, previews = watched(engine, plan, images)
    assert list(previews) == [1, 2, 3]
    assert {preview.size for preview in previews.values()} == {(12, 8)}
    assert edited.image.tobytes() == engine.edit(plan, images).image.tobytes()


def test_watched_edit_on_two_devices_has_the_pixels_of_an_unwatched_one_on_one(bench, make_plan, control_png):
    paired = TorchEngine(own_pipeline(EDIT_PLUS), EDIT_PLUS, ModelConfig(threads=THREADS), more_devices=[CPU])
    plan = make_plan(model=EDIT_PLUS.id, steps=3)
    edited, previews = watched(paired, plan, [control_png])
    one, same = watched(bench(EDIT_PLUS.id).engine, plan, [control_png])
    unwatched = bench(EDIT_PLUS.id).engine.edit(plan, [control_png]).image
    assert edited.image.tobytes() == one.image.tobytes() == unwatched.tobytes()
    assert [preview.tobytes() for preview in previews.values()] == [preview.tobytes() for preview in same.values()]


def test_watched_edit_of_a_streamed_model_has_the_same_pixels_and_previews(bench, make_plan):
    config = ModelConfig(id=TEXT_TO_IMAGE.id, threads=THREADS, device="cpu", offload="stream")
    offloaded = TorchEngine(miniature.make(TEXT_TO_IMAGE), TEXT_TO_IMAGE, config)
    plan = make_plan(model=TEXT_TO_IMAGE.id, control_images=(), width=96, height=64, steps=3)
    edited, previews = watched(offloaded, plan, [])
    expected, same = watched(bench(TEXT_TO_IMAGE.id).engine, plan, [])
    assert edited.image.tobytes() == expected.image.tobytes()
    assert [preview.tobytes() for preview in previews.values()] == [preview.tobytes() for preview in same.values()]


@pytest.mark.parametrize("name", [MINIATURE, MINIATURE_RANDOM])
def test_shipped_colors_of_the_miniatures_show_a_photograph(name):
    folder = checkpoint.find(ModelConfig(checkpoint=name), EDIT)
    vae = AutoencoderKLQwenImage.from_pretrained(folder, subfolder="vae").eval()
    colors = known_colors(vae)
    assert colors is not None
    pair = samples(vae, photograph(PHOTOGRAPHS[2])[:, :128, :128], CPU)
    mean = LatentColors(torch.zeros(3, 16), pair[1].mean(dim=1, keepdim=True))
    assert psnr_db(colors, pair) >= psnr_db(mean, pair) + 2


def test_vae_with_the_published_latents_has_the_published_colors():
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
    [published] = [entry for entry in json.loads(KNOWN.read_text()) if "ComfyUI" in entry["source"]]
    colors = known_colors(vae)
    assert torch.equal(colors.weights.T, torch.tensor(published["weights"]))
    assert torch.equal(colors.bias.flatten(), torch.tensor(published["bias"]))


def test_colors_are_fitted_to_a_vae_that_nobody_knows():
    pipeline = miniature.make(TEXT_TO_IMAGE)
    pipeline.vae.register_to_config(latents_std=[2 * value for value in pipeline.vae.config.latents_std])
    assert known_colors(pipeline.vae) is None
    engine = TorchEngine(pipeline, TEXT_TO_IMAGE, ModelConfig(threads=THREADS))
    fitted = engine._encoders.latent_colors()
    pair = samples(pipeline.vae, synthetic_images(count=17)[16], CPU)
    mean = LatentColors(torch.zeros(3, 16), pair[1].mean(dim=1, keepdim=True))
    assert psnr_db(fitted, pair) > psnr_db(mean, pair)


def test_least_squares_find_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    weights, bias = torch.randn(3, 16, generator=generator) / 8, torch.randn(3, 1, generator=generator) / 8
    latents = [torch.randn(16, 500, generator=generator) for _ in range(2)]
    found = fit([(each, weights @ each + bias) for each in latents])
    assert torch.allclose(found.weights, weights, atol=1e-3)
    assert torch.allclose(found.bias, bias, atol=1e-3)


def test_table_of_colors_is_what_the_tool_writes():
    text = KNOWN.read_text()
    assert as_json(json.loads(text)) == text
