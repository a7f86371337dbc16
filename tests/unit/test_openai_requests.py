"""What the fields of a call of OpenAI's images API mean as a request. Pure."""

import pytest
from pydantic import ValidationError

from serve_app.api.bodies.images_bodies import read_fields
from serve_app.api.bodies.multipart import Form, Part
from serve_app.errors import ControlImageRequired, InvalidParameter, RequestError, TooManyControlImages
from serve_app.intake.openai.images import EDITS, GENERATIONS, Target, ignored_names, to_request
from serve_app.models.registry import MODELS
from serve_app.schemas.openai import SYNONYMS, ImagesEdit, ImagesGeneration
from serve_app.schemas.requests import MAX_SEED, InferenceRequest, Lora, Prompt

EDIT = Target(MODELS["qwen_image_edit"])
EDIT_PLUS = Target(MODELS["qwen_image_edit_plus"])
TEXT_TO_IMAGE = Target(MODELS["qwen_image"])
PRESET = Target(MODELS["qwen_image_edit"], "house-style", None, frozenset({"model", "loras", "size", "output_format"}))


def edited(target: Target = EDIT, **fields: object) -> InferenceRequest:
    call = ImagesEdit.model_validate({"prompt": "make it night", "image": "data:,x"} | fields)
    return to_request(call, EDITS, target)


def sent(request: InferenceRequest) -> dict:
    """The fields of the request and of its only prompt that are not at their defaults."""
    [prompt] = request.model_dump(exclude_unset=True).pop("prompts")
    return request.model_dump(exclude_unset=True, exclude={"prompts"}) | prompt


def test_call_without_options_is_exact_and_has_the_images_aspect():
    assert sent(edited()) == {
        "model": "qwen_image_edit",
        "loras": [],
        "output_format": "png",
        "prompt": "make it night",
        "ctrl_img": "data:,x",
        "size": "input",
    }


@pytest.mark.parametrize("size", ["auto", None])
def test_automatic_size_is_the_images_or_the_presets(size):
    assert edited(size=size).prompts[0].size == "input"
    assert edited(PRESET, size=size).prompts[0].size is None
    call = ImagesGeneration.model_validate({"prompt": "x", "size": size})
    assert to_request(call, GENERATIONS, TEXT_TO_IMAGE).prompts[0].size is None


@pytest.mark.parametrize("target", [EDIT, PRESET])
def test_size_that_is_sent_wins(target):
    assert edited(target, size="1536x1024").prompts[0].size == "1536x1024"
    assert edited(target, size="input").prompts[0].size == "input"


def test_preset_decides_what_is_not_sent():
    assert sent(edited(PRESET)) == {"preset": "house-style", "prompt": "make it night", "ctrl_img": "data:,x"}
    fields = sent(edited(PRESET, output_format="webp", loras=[], quality="auto"))
    assert (fields["output_format"], fields["loras"]) == ("webp", [])
    assert "quality" not in fields
    other = Target(MODELS["qwen_image_edit_plus"], "house-style", "qwen_image_edit_plus", PRESET.preset_sets)
    assert sent(edited(other))["model"] == "qwen_image_edit_plus"


def test_images_become_control_images_in_order():
    fields = {"image": ["a", "b"], "images": [{"image_url": "data:,c"}]}
    [prompt] = edited(EDIT_PLUS, **fields).prompts
    assert (prompt.ctrl_img, prompt.ctrl_img_1, prompt.ctrl_img_2, prompt.ctrl_img_3) == (None, "a", "b", "data:,c")


@pytest.mark.parametrize(
    ("asked", "made"),
    [("high", "exact"), ("standard", "exact"), ("hd", "exact"), ("medium", "balanced"), ("low", "fast")],
)
def test_qualities(asked, made):
    assert edited(quality=asked).quality == made


def test_images_have_consecutive_seeds():
    assert [prompt.seed for prompt in edited(n=3, seed=7).prompts] == [7, 8, 9]
    assert [prompt.seed for prompt in edited(n=2, seed=-1).prompts] == [-1, -1]
    # The request's own default, 42 and up, so that an explanation says the same.
    assert [prompt.seed for prompt in edited(n=2).prompts] == [None, None]
    assert len(edited(n="10").prompts) == 10
    assert edited(n=2, seed=MAX_SEED - 1).prompts[1].seed == MAX_SEED


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"num_inference_steps": "8"}, "sample_steps", 8),
        ({"steps": 8}, "sample_steps", 8),
        ({"steps": "8", "num_inference_steps": 8}, "sample_steps", 8),
        ({"guidance_scale": "1"}, "guidance_scale", 1.0),
        ({"true_cfg_scale": 2.5}, "guidance_scale", 2.5),
        ({"negative_prompt": "rain"}, "neg", "rain"),
        ({"sampler": "lightning"}, "sampler", "lightning"),
    ],
)
def test_fields_of_the_prompt(fields, name, value):
    assert getattr(edited(**fields).prompts[0], name) == value


def test_fields_of_the_request():
    fields = {"trigger_word": "sks", "profile": "trainer", "priority": "bulk", "deadline_s": "60", "exif": "apply"}
    request = edited(**fields, hf_token="hf_x", vae_tiling="true")
    assert (request.trigger_word, request.profile, request.priority) == ("sks", "trainer", "bulk")
    assert (request.deadline_s, request.exif, request.vae_tiling) == (60.0, "apply", True)
    assert request.hf_token is not None
    assert request.hf_token.get_secret_value() == "hf_x"


@pytest.mark.parametrize(
    "lora", [{"scale": 0.5}, {"network_multiplier": "0.5"}, {"scale": 0.5, "network_multiplier": 0.5}]
)
def test_strength_of_a_lora_has_two_names(lora):
    [made] = edited(loras=[{"path": "a"} | lora]).loras
    assert made.model_dump(exclude_unset=True) == {"path": "a", "network_multiplier": 0.5}


def test_lora_without_a_strength_has_the_default():
    [made] = edited(loras='[{"path": "a"}]').loras
    assert made == Lora(path="a")


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"steps": 8, "num_inference_steps": 9}, "steps"),
        ({"guidance_scale": 1, "true_cfg_scale": 2}, "true_cfg_scale"),
        ({"neg": "a", "negative_prompt": "b"}, "negative_prompt"),
        ({"loras": [{"path": "a", "scale": 1, "network_multiplier": 0}]}, "loras"),
        ({"seed": MAX_SEED, "n": 2}, "seed"),
    ],
)
def test_two_values_for_one_thing_are_refused(fields, parameter):
    with pytest.raises(InvalidParameter) as refused:
        edited(**fields)
    assert refused.value.details["parameter"] == parameter


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"mask": "a file"}, "mask"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"images": [{"file_id": "file-1"}]}, "images"),
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"size": "63x64"}, "size"),
        ({"size": "1024"}, "size"),
        ({"quality": "ultra"}, "quality"),
        ({"partial_images": 4}, "partial_images"),
        ({"loras": "my_lora"}, "loras"),
        ({"loras": '{"path": "a"}'}, "loras"),
        ({"loras": "[" * 100_000}, "loras"),
        ({"loras": [{"scale": 1}]}, "loras"),
        ({"response_format": "hex"}, "response_format"),
        ({"seed": -2}, "seed"),
    ],
)
def test_values_that_are_not_supported(fields, name):
    with pytest.raises(ValidationError) as refused:
        ImagesEdit.model_validate({"prompt": "x"} | fields)
    assert {fault["loc"][0] for fault in refused.value.errors()} == {name}


@pytest.mark.parametrize(
    ("target", "route", "images", "error"),
    [
        (TEXT_TO_IMAGE, EDITS, ["a"], InvalidParameter),
        (EDIT, GENERATIONS, None, InvalidParameter),
        (EDIT, EDITS, None, ControlImageRequired),
        (EDIT, EDITS, ["a", "b"], TooManyControlImages),
        (EDIT_PLUS, EDITS, ["a", "b", "c", "d"], TooManyControlImages),
    ],
)
def test_model_must_take_what_the_route_sends(target, route, images, error):
    call = ImagesEdit.model_validate({"prompt": "x", "image": images})
    with pytest.raises(error) as refused:
        to_request(call, route, target)
    assert isinstance(refused.value, RequestError)


def test_fields_without_an_effect_are_named():
    fields = {"user": "me", "moderation": "low", "input_fidelity": "high", "style": "vivid", "background": "auto"}
    fields |= {"safety_identifier": "id", "output_compression": 80, "unheard_of": {"x": 1}, "partial_images": 2}
    call = ImagesEdit.model_validate({"prompt": "x", "image": "a"} | fields)
    assert ignored_names(call) == sorted(fields)
    assert set(fields) <= set(to_request(call, EDITS, EDIT).model_extra or ())
    streamed = ImagesEdit.model_validate(
        {"prompt": "x", "stream": "true", "partial_images": "2", "response_format": "url"}
    )
    assert ignored_names(streamed) == ["response_format"]


def test_unknown_fields_never_become_fields_of_a_request():
    fields = {"prompts": [{"prompt": "other"}], "webhook_url": "http://example.com", "width": 64, "ctrl_img": "b"}
    request = edited(**fields)
    assert (request.webhook_url, request.prompts[0].width, request.prompts[0].ctrl_img) == (None, None, "data:,x")
    assert ignored_names(ImagesEdit.model_validate({"prompt": "x"} | fields)) == sorted(fields)


def test_fields_have_the_bounds_of_a_request():
    """A value that passes here passes there."""
    bounds = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "maxLength", "maxItems"}

    def bounds_of(schema: dict, name: str) -> dict:
        described = schema["properties"][name]
        return {key: value for key, value in (described | described.get("anyOf", [{}])[0]).items() if key in bounds}

    call = ImagesEdit.model_json_schema()
    prompt, request = Prompt.model_json_schema(), InferenceRequest.model_json_schema()
    for name, synonyms in SYNONYMS.items():
        for synonym in synonyms:
            assert bounds_of(call, synonym) == bounds_of(prompt, name) != {}
    for name in ("seed", "sampler"):
        assert bounds_of(call, name) == bounds_of(prompt, name) != {}
    for name in ("deadline_s", "trigger_word", "hf_token", "loras"):
        assert bounds_of(call, name) == bounds_of(request, name) != {}


def text(name: str, value: str) -> Part:
    return Part(name, None, None, value.encode())


def file(name: str, data: bytes = b"png", filename: str = "upload") -> Part:
    return Part(name, filename, "application/octet-stream", data)


def test_form_has_its_images_under_one_name():
    parts = [file("image[]", b"1"), text("prompt", "x"), file("image", b"2"), text("image[2]", "https://e.example/3")]
    fields, files = read_fields(Form(tuple(parts)))
    assert fields == {"prompt": "x", "image": ["part:image 0", "part:image 1", "https://e.example/3"]}
    assert [files.file(name) for name in fields["image"][:2]] == [b"1", b"2"]


def test_empty_parts_of_a_form_were_not_sent():
    parts = [text("prompt", ""), text("size", ""), file("image", b"", ""), file("mask", b""), text("n", "2")]
    assert read_fields(Form(tuple(parts)))[0] == {"prompt": "", "n": "2"}


def test_loras_of_a_form_are_json_or_one_part_for_each_value():
    whole = [text("loras[][path]", "a"), text("loras[][scale]", "1"), text("loras[][path]", "b")]
    fields, _ = read_fields(Form((*whole, text("loras[][scale]", "0.5"))))
    assert fields == {"loras": [{"path": "a", "scale": "1"}, {"path": "b", "scale": "0.5"}]}


@pytest.mark.parametrize(
    ("parts", "parameter"),
    [
        # The first or the second LoRA may be meant.
        ([text("loras[][path]", "a"), text("loras[][path]", "b"), text("loras[][scale]", "1")], "loras"),
        ([text("loras[][path]", "a"), text("loras", "[]")], "loras"),
        ([text("loras[0][path]", "a")], "loras"),
        ([text("loras[]", "a")], "loras"),
        ([text("n", "1"), text("n", "2")], "n"),
        ([file("prompt", b"make it night")], "prompt"),
    ],
)
def test_form_that_says_two_things_is_refused(parts, parameter):
    with pytest.raises(InvalidParameter) as refused:
        read_fields(Form(tuple(parts)))
    assert refused.value.details == {"parameter": parameter}


def test_same_value_twice_is_one_value():
    assert read_fields(Form((text("n", "2"), text("n", "2"))))[0] == {"n": "2"}
