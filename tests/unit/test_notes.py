"""Notes and ignored fields: explain and the result report the same."""

from functools import partial

import pytest

from serve_app.config import MINIATURE_RANDOM, ModelConfig
from serve_app.models.profile import PROFILES
from serve_app.models.prompt_tokens import TEMPLATES, PromptTokens
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.test_explain import ALL_MODELS, explained
from tests.unit.test_http_contract import finished

pytestmark = SHARES_AN_APPLICATION

# Of the aspect that the results below have, so that nothing is stretched.
WIDTH, HEIGHT = 96, 64
IMAGES = [as_base64(as_png(noise_image(WIDTH, HEIGHT, seed=seed))) for seed in (1, 2)]
# What the miniature's tokenizer, which has a token a byte, sees in front of a text-to-image prompt.
HEAD = TEMPLATES["text_to_image"].head.replace("<|im_start|>", "1").replace("<|im_end|>", "1")
ROOM = 512 + TEMPLATES["text_to_image"].dropped - len(HEAD)


@pytest.fixture
def make_body(make_body):
    return partial(make_body, width=WIDTH, height=HEIGHT)


def ignored_and_notes(client, body: dict) -> tuple[list[str], list[str]]:
    """The fields that were ignored and the notes, which explain and the result agree on."""
    answer = explained(client, body)
    metadata = finished(client, body)["metadata"]
    assert (metadata.get("ignored", []), metadata.get("notes", [])) == (answer["ignored"], answer["notes"])
    return answer["ignored"], answer["notes"]


def test_image_that_is_dropped_is_noted_with_the_reason(client, make_body):
    ignored, [note] = ignored_and_notes(client, make_body(ctrl_img=IMAGES[0], ctrl_img_2=IMAGES[1]))
    assert ignored == ["ctrl_img"]
    assert note == "ctrl_img of prompt 0 is not used, since ctrl_img_1, ctrl_img_2 or ctrl_img_3 is set"
    assert ignored_and_notes(client, make_body(ctrl_img=None, ctrl_img_2=IMAGES[1])) == ([], [])


@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_negative_prompt_that_is_not_used_is_noted_with_the_reason(client, make_body, scale):
    ignored, [note] = ignored_and_notes(client, make_body(neg="blurry", guidance_scale=scale))
    assert ignored == ["neg"]
    assert note == f"neg of prompt 0 is not used, since guidance_scale {scale:g} is not above 1"


def test_negative_prompt_that_is_used_or_empty_needs_no_note(client, make_body):
    for fields in ({"neg": "blurry"}, {"neg": "", "guidance_scale": 1}, {"neg": "blurry", "guidance_scale": 1.01}):
        assert ignored_and_notes(client, make_body(**fields)) == ([], [])


def test_words_that_a_text_to_image_model_does_not_read_are_counted(client_with, make_body):
    client = client_with(models=ALL_MODELS)
    read = ("word " * ROOM)[: ROOM - 1] + "."

    def notes(**fields: object) -> list[str]:
        return ignored_and_notes(client, make_body(model="qwen_image", ctrl_img=None, **fields))[1]

    assert notes(prompt=read, neg=read) == []
    whole = read + " and three more"
    [note] = notes(prompt=whole)
    words = len(whole.split())
    assert note == (
        f"prompt of prompt 0 has {len(whole)} tokens, of which qwen_image reads 512 at most: the last 3 of its "
        f"{words} words are not read"
    )
    names = [note.split(" has ")[0] for note in notes(prompt=whole, neg=whole)]
    assert names == ["prompt of prompt 0", "neg of prompt 0"]
    assert len(notes(prompt=read, neg=whole, guidance_scale=1)) == 1


def test_edit_models_read_all_of_a_prompt(client, make_body):
    assert ignored_and_notes(client, make_body(prompt="word " * 300)) == ([], [])


def test_length_is_called_an_estimate_where_there_is_no_tokenizer(make_plan):
    """A checkpoint of the hub that is not on this machine."""
    spec = MODELS["qwen_image"]
    plan = make_plan(model="qwen_image", control_images=())
    recipe = make_recipe(spec, PROFILES["reference"], plan, [])
    cut = PromptTokens(ModelConfig(id="qwen_image", checkpoint="nobody/nothing")).truncation("word " * 1_000, recipe)
    assert cut is not None
    assert (cut.is_exact, cut.tokens, cut.words) == (False, 1_250, 1_000)
    assert cut.lost == 590
    exact = PromptTokens(ModelConfig(id="qwen_image", checkpoint=MINIATURE_RANDOM)).truncation("word " * 1_000, recipe)
    assert exact is not None
    assert exact.is_exact


def test_notes_of_a_kind_are_given_up_to_a_number(client, make_body):
    body = make_body(ctrl_img_1=IMAGES[0])
    notes = explained(client, body | {"prompts": body["prompts"] * 25})["notes"]
    assert (len(notes), notes[-1]) == (21, "and the same of 5 more")
