"""What a caller says becomes the body that the service documents."""

import pytest

from edits_client import Lora
from edits_client.bodies import request_body


def test_every_option_has_its_place():
    body = request_body(
        ["upload:1", "upload:2"],
        ["make it night"],
        {
            "model": "m",
            "loras": [Lora("a.safetensors", 0.5), "b.safetensors:-1", "c.safetensors"],
            "size": (640, 480),
            "steps": 8,
            "guidance": 1.0,
            "negative_prompt": "fog",
            "seeds": [1, 2],
            "sampler": "lightning",
            "trigger_word": "auto",
            "output_format": "png",
            "priority": "bulk",
            "extra": {"kv_cache": True},
            "prompt_extra": {"fps": 1},
        },
    )
    prompt = {
        "prompt": "make it night",
        "neg": "fog",
        "sample_steps": 8,
        "guidance_scale": 1.0,
        "sampler": "lightning",
        "size": "640x480",
        "ctrl_img_1": "upload:1",
        "ctrl_img_2": "upload:2",
        "fps": 1,
    }
    assert body == {
        "model": "m",
        "trigger_word": "auto",
        "output_format": "png",
        "priority": "bulk",
        "loras": [
            {"path": "a.safetensors", "network_multiplier": 0.5},
            {"path": "b.safetensors", "network_multiplier": -1.0},
            {"path": "c.safetensors", "network_multiplier": 1.0},
        ],
        "kv_cache": True,
        "prompts": [prompt | {"seed": 1}, prompt | {"seed": 2}],
    }


def test_what_is_not_said_is_not_sent():
    assert request_body(["x"], ["p"], {"model": "m"}) == {
        "model": "m",
        "loras": [],
        "prompts": [{"prompt": "p", "ctrl_img_1": "x"}],
    }


def test_preset_keeps_its_loras_unless_others_are_named():
    assert "loras" not in request_body(["x"], ["p"], {"preset": "house"})
    assert request_body(["x"], ["p"], {"preset": "house", "loras": []})["loras"] == []


def test_each_prompt_is_made_with_each_seed():
    prompts = request_body([], ["a", "b"], {"model": "m", "seeds": [1, 2]})["prompts"]
    assert [(prompt["prompt"], prompt["seed"]) for prompt in prompts] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("a.safetensors", Lora("a.safetensors")),
        ("a.safetensors:0.8", Lora("a.safetensors", 0.8)),
        ("a:b.safetensors", Lora("a:b.safetensors")),
        ("https://host/a.safetensors", Lora("https://host/a.safetensors")),
        ("https://host:8080/a.safetensors:-0.5", Lora("https://host:8080/a.safetensors", -0.5)),
    ],
)
def test_lora_on_a_command_line(text, lora):
    assert Lora.parse(text) == lora


@pytest.mark.parametrize(
    ("images", "prompts", "options", "reason"),
    [
        ([], [], {}, "no prompt"),
        (["1", "2", "3", "4"], ["p"], {}, "at most 3"),
        ([], ["p"], {"loras": [Lora("a", 2.5)]}, "from -2 to 2"),
        ([], ["p"], {"seed": 1, "seeds": [2]}, "one of them"),
    ],
)
def test_what_cannot_be_meant_is_refused(images, prompts, options, reason):
    with pytest.raises(ValueError, match=reason):
        request_body(images, prompts, options)
