"""The trainer's rules for its samples: seeds, flags in prompts, defaults, control images."""

import pytest
import yaml

from serve_app.training.config_yaml import ConfigUnreadable, read_config
from serve_app.training.model_names import model_of
from serve_app.training.prompt_flags import split_flags
from serve_app.training.samples import Sample, read_samples
from serve_app.training.settings import TrainingSettings, read_settings
from tests.training_folder import trainer_config


def settings(sample: dict, **changes: object) -> TrainingSettings:
    return read_settings(yaml.dump(trainer_config(sample=sample, **changes)).encode())


def samples(items: list[dict], **section: object) -> tuple[Sample, ...]:
    named = [{"prompt": "a cat"} | item for item in items]
    return settings({"samples": named} | section).samples


def seeds(items: list[dict], **section: object) -> list[int]:
    return [sample.seed for sample in samples(items, **section)]


def test_what_is_left_out_has_the_trainers_defaults():
    [sample] = samples([{}])
    assert sample == Sample(0, "a cat", "", 512, 512, 0, 7.0, 20, 1.0, ())


def test_what_a_sample_leaves_out_comes_from_the_section():
    section = {"width": 768, "height": 640, "neg": "blur", "guidance_scale": 3, "sample_steps": 9}
    first, second = samples([{}, {"width": 256, "neg": "fog"}], network_multiplier=0.5, **section)
    assert first == Sample(0, "a cat", "blur", 768, 640, 0, 3.0, 9, 0.5)
    assert second == Sample(1, "a cat", "fog", 256, 640, 0, 3.0, 9, 0.5)


def test_without_walk_seed_all_have_the_same():
    assert seeds([{}, {}, {}], seed=7) == [7, 7, 7]


def test_with_walk_seed_each_has_its_number_more():
    assert seeds([{}, {}, {}], seed=7, walk_seed=True) == [7, 8, 9]


def test_own_seed_stays_for_the_samples_after_it():
    assert seeds([{}, {"seed": 40}, {}, {"seed": 3}, {}], seed=7) == [7, 40, 40, 3, 3]


def test_own_seed_does_not_stay_with_walk_seed():
    assert seeds([{}, {"seed": 40}, {}], seed=7, walk_seed=True) == [7, 40, 9]


def test_seed_of_a_flag_does_not_stay():
    assert seeds([{"prompt": "a cat --d 40"}, {}], seed=7) == [40, 7]


def test_flag_wins_over_the_samples_own_value():
    [sample] = samples([{"prompt": "a cat --w 640 --seed 5 --m 0.25", "width": 768, "seed": 9}])
    assert (sample.width, sample.seed, sample.network_multiplier) == (640, 5, 0.25)


def test_random_seed_is_told():
    first, second = samples([{"seed": -1}, {"seed": 1}])
    assert (first.is_random, second.is_random) == (True, False)


@pytest.mark.parametrize(("value", "expected"), [("0.8", 0.8), ("strong", 1.0), ("", 1.0), (0.5, 0.5), (None, 1.0)])
def test_multiplier_may_be_a_text(value, expected):
    assert samples([{"network_multiplier": value}])[0].network_multiplier == expected
    assert samples([{}], network_multiplier=value)[0].network_multiplier == expected


def test_false_means_no_negative_prompt():
    assert samples([{"neg": False}, {}], neg="blur")[0].negative_prompt == ""
    assert samples([{}], neg=False)[0].negative_prompt == ""


def test_sides_are_floored_to_multiples_of_8_after_the_flags():
    first, second = samples([{"width": 519, "height": 527}, {"prompt": "a cat --w 527"}])
    assert (first.width, first.height, second.width) == (512, 520, 520)


@pytest.mark.parametrize(
    ("prompt", "text", "flags"),
    [
        ("  a cat  ", "a cat", {}),
        ("a cat --n blur and fog --w 64", "a cat", {"negative_prompt": "blur and fog", "width": 64}),
        ("a cat --h 8 --l 2.5 --s 3", "a cat", {"height": 8, "guidance_scale": 2.5, "steps": 3}),
        ("a cat --cfg 1 --steps 4 --seed 5", "a cat", {"guidance_scale": 1.0, "steps": 4, "seed": 5}),
        ("a cat --d -1", "a cat", {"seed": -1}),
        ("a cat --network_multiplier 2", "a cat", {"network_multiplier": 2.0}),
        # Others change nothing here, and the prompt is cut all the same.
        ("a cat --p2 a dog --ev 3", "a cat", {}),
        ("a cat -- in a hat", "a cat", {}),
        ("a cat--w 64", "a cat", {"width": 64}),
    ],
)
def test_flags_of_a_prompt(prompt, text, flags):
    assert split_flags(prompt) == (text, flags)


def test_flag_without_a_number_is_a_problem_of_its_sample_only():
    first, second = samples([{"prompt": "a cat --w wide"}, {}])
    assert first.problem == (
        "the trainer's settings of sample 0 cannot be read: the flag --w of the prompt has no number"
    )
    assert second.problem is None


HUGE = 10**400


@pytest.mark.parametrize(
    "item",
    [
        *({"width": "wide"}, {"guidance_scale": [1]}, {"sample_steps": True}, {"prompt": 3}, {"width": 1.5}),
        *({"width": HUGE}, {"guidance_scale": HUGE}, {"network_multiplier": HUGE}, {"network_multiplier": "nan"}),
        *({"guidance_scale": float("inf")}, {"prompt": "a cat --cfg nan"}, {"prompt": "a cat --m -inf"}),
    ],
)
def test_value_that_is_no_number_is_a_problem_of_its_sample_only(item):
    first, second = samples([item, {}])
    assert first.problem is not None
    assert second.problem is None


@pytest.mark.parametrize("seed", [HUGE, -HUGE, float("nan"), 1.5])
def test_seed_that_is_no_number_is_a_problem(seed):
    assert settings({"prompts": ["a cat"], "seed": seed}).problem is not None
    assert settings({"samples": [{"prompt": "a cat", "seed": seed}]}).problem is not None


def test_seed_of_a_whole_float_keeps_all_of_its_digits():
    assert seeds([{"seed": 2**62 + 1}, {"seed": 4.0}]) == [2**62 + 1, 4]


def test_number_of_steps_that_no_training_has_counts_for_none():
    assert settings({}, train={"steps": HUGE}).steps is None


def test_text_that_is_not_unicode_is_a_problem_of_its_sample_only():
    section = {"samples": [{"prompt": "half \ud800"}, {"prompt": "a cat"}]}
    first, second = read_samples(section, None)
    assert first.problem is not None
    assert second.problem is None


def test_trigger_word_is_put_in_before_the_flags_are_read():
    text = "[trigger] and [name]"
    assert settings({"prompts": [text]}, trigger_word="sks").samples[0].prompt == "sks and sks"
    [sample] = settings({"prompts": [text]}, trigger_word="sks --w 64 --n").samples
    assert (sample.prompt, sample.width) == ("sks", 64)


def test_without_a_trigger_word_the_prompt_stays_and_the_word_is_not_added():
    assert settings({"prompts": ["[trigger] a cat"]}, trigger_word=None).samples[0].prompt == "[trigger] a cat"
    assert settings({"prompts": ["a cat"]}, trigger_word="sks").samples[0].prompt == "a cat"


def test_samples_win_over_prompts():
    found = settings({"prompts": ["a dog", "a cow"], "samples": [{"prompt": "a cat"}]}).samples
    assert [sample.prompt for sample in found] == ["a cat"]


def test_control_images_keep_their_keys():
    items = [{"ctrl_img": "/a.png"}, {"ctrl_img_2": "b.png", "ctrl_img_1": "a.png", "ctrl_img": None}, {}]
    found = [sample.control_images for sample in samples(items)]
    assert found == [(("ctrl_img", "/a.png"),), (("ctrl_img_1", "a.png"), ("ctrl_img_2", "b.png")), ()]


@pytest.mark.parametrize("sample", [{"samples": "a cat"}, {"samples": ["a cat"]}, {"samples": [], "seed": "x"}])
def test_section_that_cannot_be_read_is_a_problem(sample):
    found = settings(sample)
    assert found.samples == ()
    assert found.problem is not None


@pytest.mark.parametrize(
    ("arch", "base", "model"),
    [
        ("qwen_image_edit", "Qwen/Qwen-Image-Edit", "qwen_image_edit"),
        ("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509", "qwen_image_edit_plus"),
        ("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2511", "qwen_image_edit_plus_2511"),
        ("qwen_image_edit_plus:2511", "/weights/edit", "qwen_image_edit_plus_2511"),
        ("qwen_image", "Qwen/Qwen-Image", "qwen_image"),
        ("qwen_image", "/models/Qwen-Image-2512", "qwen_image_2512"),
        ("qwen_image", "/2512/Qwen-Image", "qwen_image"),
        (None, "Qwen/Qwen-Image-Edit", "qwen_image_edit"),
        ("flux", "black-forest-labs/FLUX.1-dev", None),
        (None, None, None),
    ],
)
def test_model_of_a_job(arch, base, model):
    assert model_of(arch, base) == model


def test_facts_about_how_samples_were_made():
    found = settings({}, model={"quantize": True, "low_vram": True}, train={"ema_config": {"use_ema": True}})
    assert (found.quantized, found.low_vram, found.ema, found.format, found.steps) == (True, True, True, "jpg", 500)
    found = settings({"format": "png"}, model={"quantize_te": True})
    assert (found.quantized, found.low_vram, found.ema, found.format) == (True, False, False, "png")


def test_config_of_python_objects_is_read_as_plain_values():
    text = """
job: extension
config: !!python/object/apply:collections.OrderedDict
- - - name
    - my_job
  - - process
    - - trigger_word: !!python/str sks
        sample: &section
          prompts: [a cat]
        again: *section
"""
    found = read_settings(text.encode())
    assert (found.job_name, found.trigger_word, len(found.samples)) == ("my_job", "sks", 1)


DEEP = "[" * 100 + "]" * 100
BOMB = "a: &a [x, x]\n" + "".join(
    f"{c}: &{c} {{<<: [*{p}, *{p}]}}\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)
)
UNREADABLE = {
    "deep": DEEP,
    "merge keys": BOMB,
    "aliases": "a: &a 1\nb: [" + "*a, " * 2000 + "]",
    "entries": "a: [" + "1, " * 60_000 + "]",
    "large": "a" * 2_000_000,
    "cut": 'config: {name: "my',
    "tabs": "config:\n\t- x",
    "no mapping": "- 1",
    "empty": "",
    "huge number": "a: " + "9" * 10_000,
    "no date": "a: 2024-99-99",
    "date out of range": "a: 0001-01-01 00:00:00 +23:00",
    "tagged date": "a: !!timestamp x",
    "tagged truth": "a: !!bool maybe",
    "tagged number": "a: !!int ''",
    "code": "a: !!python/object/apply:os.system [echo, 1]\nconfig: 1",
    "list as key": "? [1]\n: 2",
    "itself": "a: &a [*a]",
    "no process": "config: {name: x, process: []}",
    "ordered": "config: !!python/object/apply:collections.OrderedDict [1]",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_config_that_cannot_be_used_is_refused_in_words(name):
    with pytest.raises(ConfigUnreadable):
        read_settings(UNREADABLE[name].encode())


def test_config_of_other_bytes_is_refused():
    with pytest.raises(ConfigUnreadable, match="still being written"):
        read_config(b"\xff\xfe\x00")


def test_every_beginning_of_a_config_is_read_or_refused():
    whole = yaml.dump(trainer_config(sample={"samples": [{"prompt": "a", "seed": 3}]})).encode()
    for end in range(len(whole)):
        try:
            read_settings(whole[:end])
        except ConfigUnreadable:
            continue
