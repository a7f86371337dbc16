"""Receipts from the header alone, over HTTP: what fits, what is refused, what its trainer wrote."""

import json

import pytest

from tests.unit.conftest import PAIR, TO_Q, safetensors_bytes

TRAINED = {
    "software": json.dumps({"name": "ai-toolkit", "version": "0.7.10"}),
    "training_info": json.dumps({"step": 1500, "epoch": 3}),
    "ss_tag_frequency": json.dumps({"1_sks": {"sks": 1}}),
}


@pytest.fixture
def write(config):
    from pathlib import Path

    def write(name: str, shapes=PAIR, metadata=TRAINED) -> str:
        path = Path(config.lora_root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(safetensors_bytes(shapes, metadata))
        return name

    return write


def explained(client, body: dict) -> dict:
    answer = client.post("/v1/explain", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_receipt_says_what_the_file_is(client, make_body, write):
    shapes = PAIR | {"diffusion_model.img_in.diff": (16, 64), "emb_params": (4, 32)}
    body = make_body(loras=[{"path": write("mine.safetensors", shapes)}])
    [lora] = explained(client, body)["effective"][0]["loras"]
    assert lora["receipt"] | {"size_bytes": 0} == {
        "kind": "full+lora",
        "ranks": [2],
        "dtype": "F32",
        "size_bytes": 0,
        "modules": 2,
        "top_level": ["img_in"],
        "ignored": ["emb_params"],
        "trigger_word": "sks",
        "trainer": "ai-toolkit",
        "trainer_version": "0.7.10",
        "step": 1500,
    }


def test_receipt_decides_the_profile_of_auto(client, make_body, write):
    body = make_body(loras=[{"path": write("old.safetensors")}], profile="auto")
    assert explained(client, body)["effective"][0]["profile"] == "trainer-0.7.32"


@pytest.mark.parametrize("software", ['"0.7.10"', '{"name": "other", "version": "0.7.10"}', "not json", "[]", "3"])
def test_metadata_of_another_shape_says_nothing(client, make_body, write, software):
    path = write("odd.safetensors", metadata={"software": software, "ss_tag_frequency": "[1]", "training_info": "{}"})
    [record] = explained(client, make_body(loras=[{"path": path}], profile="auto"))["effective"]
    assert record["profile"] == "trainer"
    assert record["loras"][0]["receipt"]["trigger_word"] is None


def test_file_that_fits_in_part_is_refused_with_counts_and_first_keys(client, make_body, write):
    foreign = {f"unet.down.{i}.lora_A.weight": (2, 16) for i in range(7)}
    body = make_body(loras=[{"path": write("part.safetensors", PAIR | foreign)}])
    answers = [client.post(route, json=body) for route in ("/v1/explain", "/v1/inference")]
    assert [answer.status_code for answer in answers] == [400, 400]
    error = answers[1].json()["detail"]["error"]
    assert error["code"] == "LORA_INCOMPATIBLE"
    assert "7 of its tensors cannot be applied, 1 modules fit" in error["message"]
    details = error["details"]
    assert (details["modules_that_fit"], details["keys_that_do_not"]) == (1, 7)
    assert list(details["first_of_them"]) == sorted(foreign)[:5]


def test_kind_that_cannot_be_applied_exactly_is_refused_by_name(client, make_body, write):
    body = make_body(loras=[{"path": write("dora.safetensors", PAIR | {f"{TO_Q}.dora_scale": (1, 16)})}])
    error = client.post("/v1/inference", json=body).json()["detail"]["error"]
    assert (error["code"], "DoRA is not a difference" in error["message"]) == ("LORA_INCOMPATIBLE", True)


def test_trigger_that_nobody_fills_is_noted(client, make_body, write):
    loras = [{"path": write("mine.safetensors")}]
    [note] = explained(client, make_body(loras=loras))["notes"]
    assert "'mine.safetensors' was trained with 'sks': send trigger_word: auto" in note
    assert explained(client, make_body(loras=loras, trigger_word="cat"))["notes"] == []


def test_auto_trigger_is_the_files_own(client, make_body, write):
    answer = explained(client, make_body(loras=[{"path": write("mine.safetensors")}], trigger_word="auto"))
    assert (answer["effective"][0]["prompt"], answer["notes"]) == ("sks at night", [])


def test_auto_trigger_without_one_in_the_file_is_noted(client, make_body, write):
    path = write("plain.safetensors", metadata={})
    answer = explained(client, make_body(loras=[{"path": path}], trigger_word="auto"))
    assert answer["effective"][0]["prompt"] == "[trigger] at night"
    assert "no adapter's file names a word" in answer["notes"][0]
