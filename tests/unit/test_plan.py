"""From a request to effective values: profiles, sizes, seeds, what is ignored and what is said about it."""

import pytest

from serve_app.config import AppConfig, ModelConfig, ProfileName
from serve_app.errors import InvalidParameter
from serve_app.images.decode import ImageFacts
from serve_app.intake.admission.ignored import ignored_fields
from serve_app.intake.admission.notes import exif_notes, stretch_notes
from serve_app.intake.admission.plan import PlannedEdit, add_recipes, plan_edits
from serve_app.models.architecture import PUBLISHED, architecture_of
from serve_app.models.profile import PROFILES, profile_of_trainer
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS
from serve_app.schemas.requests import InferenceRequest
from serve_app.tasks import AdapterUse, EditPlan, Receipt


def parsed(request: dict) -> InferenceRequest:
    return InferenceRequest.model_validate(
        {"model": "qwen_image_edit", "loras": [], "prompts": [{"prompt": "x"}]} | request
    )


def plans(request: dict, adapters: tuple[AdapterUse, ...] = (), **config: object):
    """The plans of a request, whose control image "c" has the digest "d"."""
    body = parsed(request)
    return plan_edits(body, MODELS[body.model], AppConfig.model_validate(config), {"c": "d"}, adapters, {}, lambda: 77)


def edits(plans: list[EditPlan], images: dict[str, ImageFacts]) -> list[PlannedEdit]:
    """The plans with their recipes; `images` are by digest."""
    return add_recipes(plans, MODELS[plans[0].model], images)


def lora(version: str | None) -> AdapterUse:
    receipt = Receipt("lora", (4,), "BF16", 1000, 28, trainer="ai-toolkit", trainer_version=version)
    return AdapterUse("id", "a.safetensors", "/a.safetensors", 1.0, receipt)


@pytest.mark.parametrize(
    ("version", "profile"),
    [
        ("0.1.0", "trainer-0.6.0"),
        ("0.6.0", "trainer-0.6.0"),
        ("0.6.1", "trainer-0.7.32"),
        ("0.7.9", "trainer-0.7.32"),
        ("0.7.32", "trainer-0.7.32"),
        ("0.7.33", "trainer-0.9.0"),
        ("0.9.0", "trainer-0.9.0"),
        ("0.9.1", "trainer"),
        ("0.12.26", "trainer"),
        ("1.0.0", "trainer"),
        (None, "trainer"),
        ("nightly!", "trainer"),
    ],
)
def test_auto_picks_by_the_trainers_version(version, profile):
    [plan] = plans({"profile": "auto"}, (lora(version),))
    assert plan.profile == profile
    assert plan.why["profile"].startswith("auto: ")


def test_profiles_of_the_trainers_history_are_those_of_the_table():
    rows = {
        "trainer-0.6.0": (True, "M-RoPE", True),
        "trainer-0.7.32": (True, "M-RoPE", False),
        "trainer-0.9.0": (False, "M-RoPE", False),
        "trainer": (False, "1-D", False),
    }
    for name, row in rows.items():
        profile = PROFILES[name]
        found = (profile.encoder_sides_swapped, profile.encoder_position_ids, profile.edit_plus_guidance_rescaled)
        assert found == row
        assert profile.edit_control_kernel == "bilinear"


def test_auto_goes_by_the_first_adapter_that_says_something_and_names_the_others():
    profile, why = profile_of_trainer([None, "0.7.0", "0.12.26"])
    assert profile.name == "trainer-0.7.32"
    assert "ai-toolkit 0.7.0" in why
    assert "0.12.26" in why


def test_names_that_a_request_may_use_are_the_profiles_and_auto():
    assert set(ProfileName.__args__) == {*PROFILES, "auto"}


def test_requests_profile_wins_over_the_configs():
    assert plans({})[0].profile == "reference"
    assert plans({}, preview_profile="trainer")[0].profile == "trainer"
    assert plans({"profile": "reference"}, preview_profile="trainer")[0].profile == "reference"
    assert plans({}, (lora("0.7.0"),), preview_profile="auto")[0].profile == "trainer-0.7.32"


@pytest.mark.parametrize(
    ("model", "profile", "size"),
    [
        ("qwen_image_edit", "reference", (992, 608)),
        ("qwen_image_edit_plus", "reference", (992, 608)),
        ("qwen_image", "reference", (992, 624)),
        ("qwen_image", "trainer", (992, 608)),
        ("qwen_image_2512", "reference", (992, 624)),
    ],
)
def test_sizes_are_floored_as_model_and_profile_say(model, profile, size):
    [plan] = plans({"model": model, "profile": profile, "prompts": [{"prompt": "x", "width": 1000, "height": 639}]})
    assert (plan.width, plan.height) == size
    assert plan.why["size"].startswith("1000x639 (asked for), each side floored")


def test_seeds_say_where_they_come_from():
    prompts = [{"prompt": "x"}, {"prompt": "x", "seed": -1}, {"prompt": "x", "seed": 9}]
    made = plans({"prompts": prompts})
    assert [plan.seed for plan in made] == [42, 77, 9]
    assert [plan.why["seed"].split()[0] for plan in made] == ["default:", "drawn", "asked"]


def test_text_to_image_ignores_control_images_and_says_so():
    prompt = {"prompt": "x", "ctrl_img": "c", "fps": 8}
    body = InferenceRequest.model_validate({"model": "qwen_image", "loras": [], "prompts": [prompt]})
    assert ignored_fields(body, MODELS["qwen_image"]) == ["ctrl_img", "fps"]
    assert ignored_fields(body, MODELS["qwen_image_edit"]) == ["fps"]
    [plan] = plan_edits(body, MODELS["qwen_image"], AppConfig(), {}, (), {})
    assert plan.control_images == ()


@pytest.mark.parametrize(
    ("model", "meaning"),
    [
        ("qwen_image_edit", "it will be stretched"),
        ("qwen_image_edit_plus", "it may come out stretched or cut"),
    ],
)
def test_result_of_another_aspect_is_noted(model, meaning):
    prompts = [{"prompt": "x", "ctrl_img": "c"}, {"prompt": "x", "ctrl_img": "c", "width": 768, "height": 1024}]
    request = {"model": model, "prompts": prompts}
    [note] = stretch_notes(parsed(request), edits(plans(request), {"d": ImageFacts((1200, 1600))}))
    assert note == f"prompt 0: the control image is 1200x1600, the result 1024x1024: {meaning}; use size: input"


@pytest.mark.parametrize(
    ("size", "notes"), [((1024, 1004), 0), ((1024, 1003), 1), ((1004, 1024), 0), ((1003, 1024), 1)]
)
def test_stretching_of_two_percent_goes_without_saying(size, notes):
    request = {"prompts": [{"prompt": "x", "ctrl_img": "c"}]}
    assert len(stretch_notes(parsed(request), edits(plans(request), {"d": ImageFacts(size)}))) == notes


def test_first_of_several_control_images_gives_the_aspect():
    prompt = {"prompt": "x", "ctrl_img_1": "wide", "ctrl_img_2": "square"}
    body = InferenceRequest.model_validate({"model": "qwen_image_edit_plus", "loras": [], "prompts": [prompt]})
    digests = {"wide": "w", "square": "s"}
    made = plan_edits(body, MODELS[body.model], AppConfig(), digests, (), {})
    images = {"w": ImageFacts((1600, 900)), "s": ImageFacts((900, 900))}
    [note] = stretch_notes(body, edits(made, images))
    assert "1600x900" in note
    assert stretch_notes(body, edits(made, images | {"w": ImageFacts((900, 900))})) == []


def test_image_without_control_image_is_not_stretched():
    assert stretch_notes(parsed({"model": "qwen_image"}), edits(plans({"model": "qwen_image"}), {})) == []


def test_ignored_exif_rotation_is_noted():
    turned = {"d": ImageFacts((64, 48), exif_orientation=6)}
    request = {"prompts": [{"prompt": "x", "ctrl_img": "c"}]}
    [note] = exif_notes(edits(plans(request), turned))
    assert "control image 1 of prompt 0 has EXIF orientation 6" in note
    assert exif_notes(edits(plans(request | {"exif": "apply"}), turned)) == []
    assert exif_notes(edits(plans(request), {"d": ImageFacts((64, 48))})) == []


def test_flops_of_a_forward_are_those_counted_by_hand():
    """198 TFLOP at 1024x1024: 4096 target and as many control tokens, 1369 of the encoder's image, some text."""
    [plan] = plans({})
    recipe = make_recipe(MODELS["qwen_image_edit"], PROFILES["reference"], plan, [(1024, 1024)])
    assert recipe.image_tokens == 8192
    assert PUBLISHED.forward_flops(recipe.image_tokens, 1369 + 40) == pytest.approx(198e12, rel=0.01)


def test_architecture_is_read_from_a_directory(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text('{"num_layers": 3, "num_attention_heads": 4, "x": 1}')
    found = architecture_of(ModelConfig(checkpoint=str(tmp_path)))
    assert (found.num_layers, found.num_attention_heads, found.attention_head_dim) == (3, 4, 128)
    assert architecture_of(ModelConfig(checkpoint="Qwen/Qwen-Image-Edit")).adapted_modules == 840


def test_vae_works_in_tiles_for_every_request_of_a_model_whose_config_says_so():
    models = [{"id": "qwen_image_edit"}, {"id": "qwen_image", "vae_tiling": True}]
    request = {"prompts": [{"prompt": "x"}]}
    assert [plan.vae_tiling for plan in plans(request | {"model": "qwen_image"}, models=models)] == [True]
    assert [plan.vae_tiling for plan in plans(request, models=models)] == [False]
    assert [plan.vae_tiling for plan in plans(request | {"vae_tiling": True}, models=models)] == [True]


@pytest.mark.parametrize(("lever", "value", "unset"), [("quantization", "fp8", "none"), ("feature_cache", 0.1, None)])
def test_lossy_option_is_named_and_refused_for_the_trainers_profile(lever, value, unset):
    models = [{"id": "qwen_image_edit", lever: value}]
    assert [getattr(plan, lever) for plan in plans({}, models=models)] == [value]
    assert [getattr(plan, lever) for plan in plans({"profile": "trainer"})] == [unset]
    for request in ({"profile": "trainer"}, {"profile": "auto"}, {"profile": "trainer-0.6.0"}):
        with pytest.raises(InvalidParameter, match=rf"profile: trainer.* {lever}: {value}"):
            plans(request, models=models)
