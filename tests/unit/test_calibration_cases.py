"""Files of prompts for calibrations: what they may say, and what is wrong with them in one sentence."""

import json
from pathlib import Path

import pytest

from serve_app.config import ModelConfig
from serve_app.errors import ConfigRefused
from serve_app.intake.calibrations.cases import Cases, read_cases
from serve_app.intake.calibrations.requests import BY_COMMAND, details_of
from serve_app.schemas.requests import Prompt
from tests.unit.test_tiers_config import PLAN

PROMPTS = """
- prompt: make it night
  ctrl_img: images/cat.png
  sample_steps: 8
- prompt: a dog
  ctrl_img_1: images/cat.png
  ctrl_img_2: https://example.com/dog.png
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/cat.png").write_bytes(b"a cat")
    return tmp_path


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_images_are_read_next_to_the_file(folder):
    cases = read_cases(written(folder, "prompts.yaml", PROMPTS))
    assert cases.name == "prompts.yaml"
    assert [prompt.prompt for prompt in cases.prompts] == ["make it night", "a dog"]
    assert cases.prompts[0].sample_steps == 8
    assert cases.files == {"images/cat.png": b"a cat"}
    assert cases.prompts[0].control_images == ["part:images/cat.png"]
    # A URL stays one.
    assert cases.prompts[1].control_images == ["part:images/cat.png", "https://example.com/dog.png"]


def test_lines_of_json_are_read_too(folder):
    lines = [json.dumps({"prompt": "one", "ctrl_img": "images/cat.png"}), "", json.dumps({"prompt": "two"})]
    cases = read_cases(written(folder, "prompts.jsonl", "\n".join(lines)))
    assert [prompt.prompt for prompt in cases.prompts] == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- ctrl_img: images/cat.png", "prompt 0 cannot be used: prompt: Field required"),
        (
            "- prompt: p\n  ctrl_img: images/no.png",
            "prompt 0 cannot be used: [^ ]*images/no.png: No such file or directory$",
        ),
        ("- prompt: p\n- prompt: p\n  step: 8", "prompt 1: there is no field 'step'"),
        ("- prompt: p\n  sample_steps: 0", "prompt 0 cannot be used: sample_steps"),
        ("- a cat", "prompt 0 is no mapping"),
        ("prompt: p", "is a list of prompts"),
        ("[]", "it has no prompts"),
        ("- {", r"prompts.yaml: the file of prompts cannot be read: [^\n]*line 1[^\n]*$"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(folder, text, reason):
    with pytest.raises(ConfigRefused, match=reason):
        read_cases(written(folder, "prompts.yaml", text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigRefused, match=r"no.yaml: the file of prompts cannot be read: No such file or directory$"):
        read_cases(tmp_path / "no.yaml")


def test_details_hold_no_secrets_of_urls():
    url = "https://user:SECRET@h/x.safetensors?X-Amz-Signature=SECRET"
    tiers = {"fast": {"adapter": url}}
    model = ModelConfig.model_validate({"id": "qwen_image_edit", "checkpoint": url, "tiers": tiers})
    details = details_of(model, model.tiers["fast"], [PLAN], Cases("the request", [Prompt(prompt="p")]), BY_COMMAND)
    assert (details["checkpoint"], details["tier"]["adapter"]) == (2 * ("https://h/x.safetensors",))
    assert "SECRET" not in json.dumps(details)
