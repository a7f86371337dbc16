"""Prompt lengths that an ingress computes without torch equal those that the text encoder is given."""

import json

import pytest
from tokenizers import models
from transformers import Qwen2Tokenizer

from serve_app.config import MINIATURE, MINIATURE_RANDOM, ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import InvalidParameter
from serve_app.images.decode import decode
from serve_app.models.profile import PROFILES
from serve_app.models.prompt_tokens import TEMPLATES, PromptTokens, max_text_tokens
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature, trained_miniature
from serve_app.pipeline.device import StageTimer
from serve_app.tasks import EditPlan
from tests.conftest import THREADS, as_png, noise_image

FAMILIES = {"qwen_image_edit": 1, "qwen_image_edit_plus": 2, "qwen_image": 0}
IMAGES = [as_png(noise_image(*size)) for size in ((96, 64), (64, 200))]
TEXTS = (
    "",
    "make it night",
    "cafe\u0301 \u00e9\u00e9 " * 20,
    "\N{GRINNING FACE}\N{FAMILY}" * 50,
    "a <|im_end|> <|vision_start|> hat\n\n  1234",
    "\u4e2d\u6587\u3000" * 100,
    "[trigger] " * 200,
)


@pytest.fixture(scope="module", params=FAMILIES, ids=list(FAMILIES))
def family(request: pytest.FixtureRequest):
    """A model's id, its engine of random weights, and control images for it."""
    config = ModelConfig(id=request.param, checkpoint=MINIATURE_RANDOM, threads=THREADS, device="cpu")
    return config, TorchEngine.load(config), IMAGES[: FAMILIES[request.param]]


def plan_for(make_plan, model: str, images: list[bytes], **changes: object) -> EditPlan:
    return make_plan(model=model, control_images=tuple("0" * 64 for _ in images), steps=1, **changes)


def test_templates_are_those_of_diffusers(family):
    config, engine, _ = family
    template = TEMPLATES[MODELS[config.id].family]
    pipeline = engine._pipeline
    assert template.head + "{}" + template.tail == pipeline.prompt_template_encode
    assert template.dropped == pipeline.prompt_template_encode_start_idx


@pytest.mark.parametrize("profile", ["reference", "trainer", "trainer-0.6.0"])
def test_token_count_equals_the_encoders(family, make_plan, profile):
    config, engine, images = family
    timer = StageTimer(engine.device)
    for text in TEXTS:
        plan = plan_for(make_plan, config.id, images, profile=profile, prompt=text, negative_prompt=text)
        recipe = engine._recipe(engine.prepare(plan, images))
        given = engine._encoders.conditions(plan, [decode(data, "ignore") for data in images], recipe, timer)
        for embeddings, sizes in (
            (given.positive, recipe.encoder_sizes),
            (given.negative, recipe.negative_encoder_sizes),
        ):
            counted = PromptTokens(config).count(text, recipe, sizes, threshold=-1)
            assert min(counted, recipe.max_prompt_tokens or counted) == embeddings.shape[1], text


# A text-to-image model cuts its prompts, so it refuses none.
@pytest.mark.parametrize("family", [model for model, count in FAMILIES.items() if count], indirect=True)
def test_longest_prompt_that_fits_is_edited_and_one_more_token_is_refused(family, make_plan):
    config, engine, images = family
    spec = MODELS[config.id]
    plan = plan_for(make_plan, config.id, images, guidance_scale=1.0)
    sizes = [decode(data, "ignore").facts.size for data in images]
    recipe = make_recipe(spec, PROFILES[plan.profile], plan, sizes)
    room, prompts = max_text_tokens(recipe, (plan.width, plan.height)), PromptTokens(config)
    # This tokenizer makes one token of each letter.
    fits = "x" * (room - prompts.count("", recipe, recipe.encoder_sizes, threshold=-1))
    assert prompts.count(fits, recipe, recipe.encoder_sizes, threshold=-1) == room
    engine.edit(plan_for(make_plan, config.id, images, guidance_scale=1.0, prompt=fits), images)
    with pytest.raises(InvalidParameter):
        engine.edit(plan_for(make_plan, config.id, images, guidance_scale=1.0, prompt=fits + "x"), images)


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
@pytest.mark.parametrize("maker", [trained_miniature, miniature], ids=["trained", "random"])
def test_tokenizer_is_read_from_the_checkpoints_files(tmp_path, maker, files):
    """Published checkpoints have a vocabulary and merges, those that transformers writes today one file."""
    spec = MODELS["qwen_image_edit"]
    whole = maker.checkpoint_folder(spec) / "tokenizer/tokenizer.json"
    (tmp_path / "tokenizer").mkdir()
    if files == "tokenizer.json":
        (tmp_path / "tokenizer" / files).write_bytes(whole.read_bytes())
    else:
        content = json.loads(whole.read_text())
        merges = [tuple(merge) for merge in content["model"]["merges"]]
        models.BPE(vocab=content["model"]["vocab"], merges=merges).save(str(tmp_path / "tokenizer"))
        added = {str(token["id"]): token for token in content["added_tokens"]}
        (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    ours = PromptTokens(ModelConfig(checkpoint=str(tmp_path)))
    theirs = Qwen2Tokenizer.from_pretrained(maker.checkpoint_folder(spec) / "tokenizer")
    for text in TEXTS:
        assert ours._encode(text).ids == theirs(text)["input_ids"], text


def test_truncation_counts_the_words_after_the_last_token_that_is_read(make_plan):
    """The trained miniature's tokenizer joins several bytes to one token."""
    config = ModelConfig(id="qwen_image", checkpoint=MINIATURE)
    spec, text = MODELS["qwen_image"], " ".join(f"word{number}" for number in range(300))
    plan = make_plan(model="qwen_image", control_images=(), prompt=text)
    recipe = make_recipe(spec, PROFILES["reference"], plan, [])
    cut = PromptTokens(config).truncation(text, recipe)
    assert cut is not None
    tokenizer = Qwen2Tokenizer.from_pretrained(trained_miniature.checkpoint_folder(spec) / "tokenizer")
    template = TEMPLATES["text_to_image"]
    ids = tokenizer(template.head + text + template.tail)["input_ids"][: template.dropped + 512]
    read_text = tokenizer.decode(ids).removeprefix(template.head)
    whole_words = [word for word in text.split() if word in read_text.split()]
    assert cut.words - cut.lost in (len(whole_words), len(whole_words) - 1)
    assert text.split()[: cut.words - cut.lost] == whole_words[: cut.words - cut.lost]
