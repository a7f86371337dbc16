"""A prompt's `size`: that of its control image, or width and height in one word."""

import random

import pytest

from serve_app.images.sizes import MAX_SIDE, MIN_SIDE, read_size, size_for_area, size_like
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.test_explain import ALL_MODELS, explained, turned_jpeg
from tests.unit.test_presets import refusal

pytestmark = SHARES_AN_APPLICATION


def sized(make_body, size: object, *, image: tuple[int, int] = (451, 300), **fields: object) -> dict:
    return make_body(width=None, height=None, size=size, ctrl_img=as_base64(as_png(noise_image(*image))), **fields)


@pytest.mark.parametrize(
    ("image", "size"),
    [((451, 300), (1248, 832)), ((300, 451), (832, 1248)), ((500, 500), (1024, 1024)), ((20, 400), (192, 4096))],
)
def test_input_is_the_control_images_aspect_at_a_megapixel(client, make_body, image, size):
    answer = explained(client, sized(make_body, "input", image=image))
    [record] = answer["effective"]
    assert (record["width"], record["height"]) == size
    assert f"input: the control image's aspect, {image[0]}:{image[1]}" in record["why"]["size"]
    # The record names the sides: the image may be gone when it is posted again.
    assert "size" not in record["request"]["prompts"][0]
    again = record["request"]["prompts"][0]
    assert (again["width"], again["height"]) == size


def test_input_is_the_pipelines_own_rule_within_the_sides_that_a_request_may_have():
    chosen = random.Random(1)
    for _ in range(2_000):
        width, height = chosen.randint(1, 5_000), chosen.randint(1, 5_000)
        size = size_like((width, height))
        assert MIN_SIDE <= min(size) <= max(size) <= MAX_SIDE
        assert not any(side % 32 for side in size)
        if max(width, height) <= 16 * min(width, height):
            assert size == size_for_area(width / height)


def test_input_is_the_aspect_after_the_rotation_that_was_asked_for(client, make_body):
    body = make_body(width=None, height=None, size="input", ctrl_img=as_base64(turned_jpeg()))
    sizes = [explained(client, body | {"exif": exif})["effective"][0] for exif in ("ignore", "apply")]
    assert [(record["width"], record["height"]) for record in sizes] == [(1248, 832), (832, 1248)]


def test_input_is_the_first_of_several_images(client_with, make_body):
    images = {f"ctrl_img_{n}": as_base64(as_png(noise_image(*size))) for n, size in ((2, (400, 200)), (3, (200, 400)))}
    body = make_body(model="qwen_image_edit_plus", ctrl_img=None, width=None, height=None, size="input", **images)
    [record] = explained(client_with(models=ALL_MODELS), body)["effective"]
    assert (record["width"], record["height"]) == size_for_area(2.0)


def test_width_and_height_in_one_word_are_floored_like_each_of_them(client, make_body):
    [one] = explained(client, sized(make_body, "1000x639"))["effective"]
    [two] = explained(
        client,
        sized(make_body, None) | {"prompts": [sized(make_body, None)["prompts"][0] | {"width": 1000, "height": 639}]},
    )["effective"]
    assert one == two
    assert (one["width"], one["height"]) == (992, 608)


def test_without_a_size_the_default_stays(client, make_body):
    [record] = explained(client, sized(make_body, None))["effective"]
    assert (record["width"], record["height"]) == (1024, 1024)


@pytest.mark.parametrize(
    "size",
    [
        "",
        "auto",
        "INPUT",
        "64",
        "64x",
        "x64",
        "64x64x64",
        "63x64",
        "64x4097",
        "64X64",
        " 64x64",
        "64 x 64",
        "+64x64",
        "64.0x64",
        "\u0661\u0662\u0668x128",
        "12800000000x64",
    ],
)
def test_size_of_another_form_is_a_fault_of_shape(client, make_body, size):
    answer = client.post("/v1/explain", json=sized(make_body, size))
    assert answer.status_code == 422
    [fault] = answer.json()["detail"]
    assert (fault["type"], fault["loc"]) == ("size_invalid", ["body", "prompts", 0, "size"])
    with pytest.raises(ValueError, match=r"size is|each side"):
        read_size(size)


@pytest.mark.parametrize("sides", [{"width": 64}, {"height": 64}, {"width": 64, "height": 64}])
@pytest.mark.parametrize("size", ["input", "64x64"])
def test_size_next_to_sides_is_refused(client, make_body, sides, size):
    body = sized(make_body, None)
    body["prompts"].append(body["prompts"][0] | {"size": size} | sides)
    error = refusal(client, body)
    assert (error["code"], error["details"]) == ("INVALID_PARAMETER", {"prompt_index": 1, "parameter": "size"})
    assert "not both" in error["message"]


def test_input_without_a_control_image_is_refused(client_with, make_body):
    client = client_with(models=ALL_MODELS)
    for image in (None, as_base64(as_png(noise_image(64, 64)))):
        body = make_body(model="qwen_image", ctrl_img=image, width=None, height=None, size="input")
        error = refusal(client, body)
        assert (error["code"], error["details"]) == ("INVALID_PARAMETER", {"prompt_index": 0, "parameter": "size"})
    body = make_body(ctrl_img=None, width=None, height=None, size="input")
    assert refusal(client, body)["code"] == "CONTROL_IMAGE_REQUIRED"


def test_size_of_the_input_needs_no_note_or_says_why_it_is_not_exact(client, make_body):
    assert explained(client, sized(make_body, "input"))["notes"] == []
    [note] = explained(client, sized(make_body, "input", image=(400, 200)))["notes"]
    assert note == (
        "prompt 0: the control image is 400x200, the result 1440x736: it will be stretched, since its sides are "
        "multiples of 32, from 64 to 4096"
    )
    [note] = explained(client, sized(make_body, None))["notes"]
    assert note == "prompt 0: the control image is 451x300, the result 1024x1024: it will be stretched; use size: input"
