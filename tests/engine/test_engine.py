"""The engine beyond pixels: adapters come and go without a trace, edits stop when told, errors stay small."""

import io
import json
import re
import shutil
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from serve_app.config import MINIATURE_RANDOM, ModelConfig
from serve_app.engine.torch_engine import TorchEngine, graphs_compiled
from serve_app.errors import (
    CheckpointRefused,
    EditCanceled,
    InvalidParameter,
    LoraChanged,
    LoraIncompatible,
    LoraInvalidFile,
    UnusableResult,
)
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from serve_app.pipeline.random_lora import make_lora
from tests.conftest import ADAPTER_CACHE_BYTES, LORAS, THREADS, as_png, noise_image
from tests.engine.pipelines import CPU, EDIT, use

# Without control images: quick. Adapters are applied to the same transformer, whichever model it belongs to.
QUICK = MODELS["qwen_image"]


@pytest.fixture(scope="module")
def quick() -> TorchEngine:
    config = ModelConfig(id=QUICK.id, checkpoint=MINIATURE_RANDOM, threads=THREADS, device="cpu")
    return TorchEngine.load(config.model_copy(update={"adapter_cache_bytes": ADAPTER_CACHE_BYTES}))


@pytest.fixture
def quick_plan(make_plan):
    return partial(make_plan, model=QUICK.id, control_images=())


@pytest.fixture
def image_of(quick, quick_plan):
    def image_of(*uses) -> np.ndarray:
        return np.asarray(quick.edit(quick_plan(adapters=uses), []).image)

    return image_of


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_every_adapter_changes_the_image_and_none_is_like_another(image_of, loras):
    images = [image_of()] + [image_of(use(path)) for path in loras]
    for i, one in enumerate(images):
        for other in images[i + 1 :]:
            assert distance(one, other) > 1


def test_multiplier_scales_without_a_reload(image_of, loras):
    base, half, full = image_of(), image_of(use(loras[0], 0.5)), image_of(use(loras[0]))
    assert distance(base, half) > 0
    assert distance(half, full) > 0
    assert np.array_equal(image_of(use(loras[0], 0.0)), base)
    assert np.array_equal(image_of(use(loras[0], 0.5)), half)


def test_adapters_leave_no_trace(image_of, loras):
    base = image_of()
    first = image_of(use(loras[0]))
    for path in loras:
        image_of(use(path, -1.0))
    assert np.array_equal(image_of(), base)
    assert np.array_equal(image_of(use(loras[0])), first)


def test_two_adapters_work_together(image_of, loras):
    both = image_of(use(loras[0], 0.5), use(loras[1], -0.5))
    assert distance(both, image_of(use(loras[0], 0.5))) > 0.5
    assert distance(both, image_of(use(loras[1], -0.5))) > 0.5


def test_same_adapter_twice_adds_up(image_of, loras):
    twice = image_of(use(loras[0], 0.25), use(loras[0], 0.5))
    assert np.array_equal(twice, image_of(use(loras[0], 0.75)))


def test_evicted_adapters_are_loaded_again(quick, image_of, loras, tmp_path):
    rare = use(shutil.copy(loras[0], tmp_path / "rare.safetensors"))
    first = image_of(rare)
    for path in loras:
        image_of(use(path))
    assert quick.adapters.size_bytes <= ADAPTER_CACHE_BYTES
    assert not quick.adapters.holds(rare.id)
    assert np.array_equal(image_of(rare), first)


def test_file_overwritten_under_its_name_is_another_adapter(image_of, loras, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(loras[0].read_bytes())
    before = image_of(use(path))
    path.write_bytes(loras[1].read_bytes())
    assert distance(before, image_of(use(path))) > 1


@pytest.mark.parametrize("change", ["overwrite", "delete"])
def test_file_changed_after_admission_fails_that_edit(image_of, loras, tmp_path, change):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(loras[0].read_bytes())
    admitted = use(path)
    path.write_bytes(loras[1].read_bytes() + b" ") if change == "overwrite" else path.unlink()
    with pytest.raises(LoraChanged, match=r"mine\.safetensors"):
        image_of(admitted)


def test_adapter_that_would_do_nothing_is_refused(image_of, tmp_path):
    """diffusers loads it silently as a no-op."""
    path = tmp_path / "noop.safetensors"
    save_file({"nothing.lora_A.weight": torch.ones(4, 16), "nothing.lora_B.weight": torch.ones(16, 4)}, path)
    base = image_of()
    with pytest.raises(LoraIncompatible, match=r"does not fit the model .* 0 modules fit"):
        image_of(use(path))
    assert np.array_equal(image_of(), base)


def test_adapter_of_another_width_is_refused_without_a_trace(image_of, loras, tmp_path):
    path = tmp_path / "wide.safetensors"
    key = "diffusion_model.transformer_blocks.0.attn.to_q"
    save_file({f"{key}.lora_A.weight": torch.ones(4, 3072), f"{key}.lora_B.weight": torch.ones(3072, 4)}, path)
    base, first = image_of(), image_of(use(loras[0]))
    with pytest.raises(LoraIncompatible, match=r"wide\.safetensors"):
        image_of(use(path))
    assert np.array_equal(image_of(), base)
    assert np.array_equal(image_of(use(loras[0])), first)


def test_unreadable_adapter_is_refused(image_of, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"not one")
    with pytest.raises(LoraInvalidFile, match=r"bad\.safetensors"):
        image_of(use(path))


def test_steps_are_reported_from_zero(quick, quick_plan):
    steps: list[int] = []
    quick.edit(quick_plan(steps=4), [], on_step=lambda step, _: steps.append(step))
    assert steps == [0, 1, 2, 3, 4]


def test_prompt_that_the_transformer_has_no_positions_for_is_refused(engine, make_plan, control_png):
    with pytest.raises(InvalidParameter, match=r"tokens, and with images of this size the model takes 4\d+: shorten"):
        engine.edit(make_plan(prompt="\u56f3" * 4096), [control_png])


def test_edit_stops_at_the_step_at_which_it_is_told(quick, quick_plan):
    steps: list[int] = []
    with pytest.raises(EditCanceled, match="after step 2 of 9"):
        quick.edit(quick_plan(steps=9), [], lambda step, _: steps.append(step), should_stop=lambda: 2 in steps)
    assert steps == [0, 1, 2]


def test_stages_are_timed_and_the_effective_values_reported(engine, make_plan, control_png):
    edited = engine.edit(make_plan(), [control_png])
    stages = {"load_control_images", "apply_adapters", "encode_prompt", "encode_control", "denoise", "decode"}
    assert stages | {"generate"} <= set(edited.timings)
    assert edited.effective["control_images"][0]["vision_encoder"]["sizes"] == [[832, 1248]]
    assert edited.effective["forwards"] == 4
    assert edited.runtime["threads"] == THREADS
    assert json.loads(json.dumps(edited.effective)) == edited.effective


def test_miniature_is_the_same_every_time(engine):
    again = miniature.make(EDIT)
    loaded = checkpoint.load(ModelConfig(checkpoint=MINIATURE_RANDOM), EDIT, CPU, torch.float32)
    for part in ("text_encoder", "transformer", "vae"):
        made, kept = getattr(again, part).state_dict(), getattr(loaded, part).state_dict()
        assert made.keys() == kept.keys()
        assert all(torch.equal(made[key], kept[key]) for key in made)


def test_checkpoint_that_save_pretrained_wrote_is_served(quick_plan, image_of, tmp_path):
    pipeline = miniature.make(QUICK)
    with torch.no_grad():
        pipeline.transformer.proj_out.weight *= 0.5
    pipeline.save_pretrained(tmp_path / "mine")
    config = ModelConfig(id=QUICK.id, checkpoint=str(tmp_path / "mine"), threads=THREADS, device="cpu")
    own = TorchEngine.load(config)
    assert distance(np.asarray(own.edit(quick_plan(), []).image), image_of()) > 0.5


@pytest.mark.parametrize(
    ("model", "file", "key", "value"),
    [
        ("qwen_image_edit", "scheduler/scheduler_config.json", "shift_terminal", None),
        ("qwen_image_edit", "scheduler/scheduler_config.json", "max_shift", 1.15),
        ("qwen_image", "scheduler/scheduler_config.json", "use_dynamic_shifting", False),
        ("qwen_image_edit", "processor/processor_config.json", "do_rescale", False),
        ("qwen_image_edit_plus", "processor/processor_config.json", "rescale_factor", 1.0),
        ("qwen_image_edit", "processor/processor_config.json", "do_normalize", False),
        ("qwen_image_edit", "processor/processor_config.json", "resample", 0),
        ("qwen_image_edit", "processor/processor_config.json", "image_mean", [0.5, 0.5, 0.5]),
        ("qwen_image_edit_plus", "transformer/config.json", "zero_cond_t", True),
        ("qwen_image_edit_plus_2511", "transformer/config.json", "zero_cond_t", False),
        ("qwen_image_edit", "transformer/config.json", "guidance_embeds", True),
        ("qwen_image_edit", "model_index.json", "_class_name", "QwenImageEditPlusPipeline"),
    ],
)
def test_checkpoint_with_other_constants_is_refused_by_name(tmp_path, model, file, key, value):
    shutil.copytree(miniature.checkpoint_folder(MODELS[model]), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / file).read_text())
    config.get("image_processor", config)[key] = value
    (tmp_path / file).write_text(json.dumps(config))
    sentence = f"does not fit {model}: .*{re.escape(f'{key} = {value!r}')}, the recipe needs"
    with pytest.raises(CheckpointRefused, match=sentence):
        checkpoint.load(ModelConfig(id=model, checkpoint=str(tmp_path)), MODELS[model], CPU, torch.float32)


def test_every_difference_of_a_checkpoint_is_named_at_once(tmp_path):
    shutil.copytree(miniature.checkpoint_folder(EDIT), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_shift": 0.1, "shift": 3.0}))
    with pytest.raises(CheckpointRefused, match=r"base_shift = 0\.1.*shift = 3\.0"):
        checkpoint.load(ModelConfig(checkpoint=str(tmp_path)), EDIT, CPU, torch.float32)


def test_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointRefused, match=r"has no model_index\.json"):
        checkpoint.load(ModelConfig(checkpoint=str(tmp_path)), EDIT, CPU, torch.float32)


def test_truncated_checkpoint_is_refused(tmp_path):
    shutil.copytree(miniature.checkpoint_folder(EDIT), tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointRefused, match=r"diffusion_pytorch_model.safetensors cannot be read: .*incomplete"):
        checkpoint.load(ModelConfig(checkpoint=str(tmp_path)), EDIT, CPU, torch.float32)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_miniature_that_edits(bench, make_plan, control_png, model):
    controls = [control_png] * MODELS[model].max_control_images
    plan = make_plan(model=model, control_images=("0" * 64,) * len(controls), steps=1, guidance_scale=1.0)
    edited = bench(model).engine.edit(plan, controls)
    assert edited.image.size == (96, 64)
    assert np.asarray(edited.image).std() > 10


@pytest.fixture
def poisoned(tmp_path):
    """An engine whose VAE's last layer has this weight and bias."""

    def poisoned(weight: float, bias: float) -> TorchEngine:
        pipeline = miniature.make(QUICK)
        with torch.no_grad():
            pipeline.vae.decoder.conv_out.weight.fill_(weight)
            pipeline.vae.decoder.conv_out.bias.fill_(bias)
        return TorchEngine(pipeline, QUICK, ModelConfig(threads=THREADS))

    return poisoned


@pytest.mark.parametrize(
    ("weight", "bias", "sentence"),
    [(0.0, float("nan"), "not finite"), (float("inf"), 0.0, "not finite"), (0.0, 0.3, "all of one colour")],
)
def test_result_that_is_no_image_fails(poisoned, quick_plan, weight, bias, sentence):
    with pytest.raises(UnusableResult, match=sentence):
        poisoned(weight, bias).edit(quick_plan(), [])


def test_control_image_is_turned_by_exif_when_asked(bench, make_plan):
    lying, upright = noise_image(90, 60), noise_image(90, 60).transpose(PIL.Image.Transpose.ROTATE_270)
    lying.getexif()[0x0112] = 6
    buffer = io.BytesIO()
    lying.save(buffer, "PNG", exif=lying.getexif())

    def edit(data: bytes, exif: str) -> bytes:
        plan = make_plan(exif=exif, steps=1, guidance_scale=1.0)
        return bench(EDIT.id).engine.edit(plan, [data]).image.tobytes()

    assert edit(buffer.getvalue(), "apply") == edit(as_png(upright), "ignore")
    assert edit(buffer.getvalue(), "ignore") == edit(as_png(noise_image(90, 60)), "ignore")
    assert edit(buffer.getvalue(), "ignore") != edit(buffer.getvalue(), "apply")


def test_made_lora_has_the_trainers_names_and_metadata(loras):
    with safe_open(loras[0], "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
    assert len(keys) == 2 * 14 * 2
    assert "diffusion_model.transformer_blocks.1.txt_mlp.net.0.proj.lora_A.weight" in keys
    assert json.loads(metadata["software"]) == {"name": "ai-toolkit", "version": "0.12.26"}
    assert metadata["ss_base_model_version"] == "qwen_image"


def test_shipped_lora_equals_a_newly_made_one(tmp_path):
    make_lora(miniature.make(EDIT).transformer, tmp_path / "my_lora.safetensors", seed=7)
    shipped = LORAS / "my_lora_job/my_lora.safetensors"
    with safe_open(tmp_path / "my_lora.safetensors", "pt") as made, safe_open(shipped, "pt") as kept:
        assert made.metadata() == kept.metadata()
        assert set(made.keys()) == set(kept.keys())
        assert all(torch.equal(made.get_tensor(key), kept.get_tensor(key)) for key in made.keys())  # noqa: SIM118


def test_each_graph_that_is_compiled_counts():
    twice = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
    twice(torch.ones(2))
    before = graphs_compiled()
    twice(torch.ones(2))
    assert graphs_compiled() == before
    # Another shape, another graph.
    twice(torch.ones(3))
    assert graphs_compiled() == before + 1
