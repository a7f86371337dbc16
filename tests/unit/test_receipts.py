"""Receipts from the header alone, over HTTP: what fits, what is refused, what its trainer wrote."""

import json
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serve_app.adapters.urls import hub_url
from serve_app.models.repeat_request import without_url_secrets
from tests.unit.conftest import PAIR, SHARES_AN_APPLICATION, TO_Q, safetensors_bytes

pytestmark = SHARES_AN_APPLICATION

TRAINED = {
    "software": json.dumps({"name": "ai-toolkit", "version": "0.7.10"}),
    "training_info": json.dumps({"step": 1500, "epoch": 3}),
    "ss_tag_frequency": json.dumps({"1_sks": {"sks": 1}}),
}


@pytest.fixture
def write(config):
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


@pytest.mark.parametrize(
    "module",
    ["lora_unet__orig_mod_transformer_blocks_0_attn_to_q", "lora_unet_transformer_blocks_0__orig_mod_attn_to_q"],
)
def test_file_of_a_compiled_model_with_underscores_for_dots_is_understood(client, make_body, write, module):
    shapes = {f"{module}.lora_down.weight": (4, 16), f"{module}.lora_up.weight": (16, 4), f"{module}.alpha": ()}
    answer = client.post("/v1/explain", json=make_body(loras=[{"path": write("compiled.safetensors", shapes)}]))
    assert answer.status_code == 200, answer.text


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
        "factor": {"source": "none", "min": 1.0, "median": 1.0, "max": 1.0},
        "notes": [],
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
    [note] = explained(client, make_body(loras=loras, width=96))["notes"]
    assert "'mine.safetensors' was trained with 'sks': send trigger_word: auto" in note
    assert explained(client, make_body(loras=loras, width=96, trigger_word="cat"))["notes"] == []


def test_auto_trigger_is_the_files_own(client, make_body, write):
    answer = explained(client, make_body(loras=[{"path": write("mine.safetensors")}], width=96, trigger_word="auto"))
    assert (answer["effective"][0]["prompt"], answer["notes"]) == ("sks at night", [])


def test_auto_trigger_without_one_in_the_file_is_noted(client, make_body, write):
    path = write("plain.safetensors", metadata={})
    answer = explained(client, make_body(loras=[{"path": path}], width=96, trigger_word="auto"))
    assert answer["effective"][0]["prompt"] == "[trigger] at night"
    assert "no adapter's file names a word" in answer["notes"][0]


def test_files_are_listed_with_their_receipts(client, write):
    write("b/two.safetensors", {"other.lora_A.weight": (2, 2)})
    write("a/one.safetensors")
    listed = client.get("/v1/loras").json()
    found = {lora["path"]: lora for lora in listed["loras"]}
    assert list(found) == ["a/one.safetensors", "b/two.safetensors", "job/lora.safetensors"]
    one, two = found["a/one.safetensors"], found["b/two.safetensors"]
    assert (one["fits"], one["receipt"]["trigger_word"], one["problem"]) == (["qwen_image_edit"], "sks", None)
    assert (two["fits"], two["receipt"]) == ([], None)
    assert "the model has no such module" in two["problem"]
    assert listed["next_cursor"] is None


def test_list_is_paged_and_searched(client, write):
    for n in range(5):
        write(f"many/{n}.safetensors")
    page = client.get("/v1/loras", params={"limit": 2, "search": "MANY/"}).json()
    assert [lora["path"] for lora in page["loras"]] == ["many/0.safetensors", "many/1.safetensors"]
    seen = len(page["loras"])
    while cursor := page["next_cursor"]:
        page = client.get("/v1/loras", params={"limit": 2, "search": "many/", "cursor": cursor}).json()
        seen += len(page["loras"])
    assert seen == 5
    by_word = client.get("/v1/loras", params={"search": "sks"}).json()["loras"]
    assert len(by_word) == 5
    assert client.get("/v1/loras", params={"limit": 0}).status_code == 422


def test_one_file_has_a_page_of_its_own(client, write):
    write("a/one.safetensors")
    assert client.get("/v1/loras/a/one.safetensors").json()["receipt"]["modules"] == 1
    for path in ("a/none.safetensors", "a", "../secret", "%2e%2e/secret"):
        answer = client.get(f"/v1/loras/{path}")
        assert answer.status_code == 404, path


def test_broken_file_is_listed_with_its_problem(client, config):
    Path(config.lora_root, "broken.safetensors").write_bytes(b"<html>")
    found = {lora["path"]: lora for lora in client.get("/v1/loras").json()["loras"]}
    assert "is an HTML page, not a safetensors file" in found["broken.safetensors"]["problem"]


def test_root_may_be_any_filesystem(client_with, make_body):
    store = fsspec.filesystem("memory")
    store.pipe_file("/shelf/job/lora.safetensors", safetensors_bytes(PAIR, TRAINED))
    client = client_with(lora_root="memory://shelf")
    assert [lora["path"] for lora in client.get("/v1/loras").json()["loras"]] == ["job/lora.safetensors"]
    assert explained(client, make_body())["effective"][0]["loras"][0]["receipt"]["step"] == 1500
    gone = client.post("/v1/inference", json=make_body(loras=[{"path": "job/gone.safetensors"}]))
    assert gone.json()["detail"]["error"]["code"] == "LORA_NOT_FOUND"
    outside = client.post("/v1/inference", json=make_body(loras=[{"path": "../x.safetensors"}]))
    assert outside.json()["detail"]["error"]["code"] == "LORA_PATH_FORBIDDEN"


class AskedStore(MemoryFileSystem):
    """A remote store that counts what it is asked."""

    protocol = "asked"
    store: dict = {}  # noqa: RUF012  # fsspec's own way to share files between instances
    pseudo_dirs = [""]  # noqa: RUF012
    opened: list[str] = []  # noqa: RUF012
    looked_up: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("asked://").strip("/")

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb":
            AskedStore.opened.append(path)
        return super()._open(path, mode, **kwargs)

    def info(self, path, **kwargs):
        AskedStore.looked_up.append(path)
        return super().info(path, **kwargs)


@pytest.fixture
def shelf(client_with):
    """A remote LoRA root of 300 files, and a client of the application over it."""
    fsspec.register_implementation("asked", AskedStore, clobber=True)
    store = fsspec.filesystem("asked")
    AskedStore.store.clear()
    for n in range(300):
        store.pipe_file(f"/shelf/{n:03}.safetensors", safetensors_bytes(PAIR, TRAINED))
    client = client_with(lora_root="asked://shelf")
    AskedStore.opened.clear()
    AskedStore.looked_up.clear()
    return client


def test_header_of_a_listed_file_is_read_once_until_it_changes(shelf):
    def listed() -> list[dict]:
        return shelf.get("/v1/loras", params={"search": "sks", "limit": 500}).json()["loras"]

    assert len(listed()) == len(listed()) == 300
    assert len(AskedStore.opened) == 300
    AskedStore.opened.clear()
    fsspec.filesystem("asked").pipe_file("/shelf/007.safetensors", safetensors_bytes(PAIR, {}))
    assert len(listed()) == 299
    assert AskedStore.opened == ["/shelf/007.safetensors"]


def test_file_of_its_own_page_is_looked_up_once(shelf):
    assert shelf.get("/v1/loras/007.safetensors").json()["receipt"]["step"] == 1500
    assert AskedStore.looked_up == ["/shelf/007.safetensors"]


def test_store_that_does_not_answer_is_not_a_missing_file(shelf, monkeypatch, make_body):
    def down(self, path, **kwargs):
        raise ConnectionError("down")

    monkeypatch.setattr(AskedStore, "info", down)
    error = shelf.post("/v1/inference", json=make_body(loras=[{"path": "007.safetensors"}])).json()["detail"]["error"]
    assert error["code"] == "LORA_DOWNLOAD_FAILED"


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("hf://me/loras/a/b.safetensors", "https://hub.example/me/loras/resolve/main/a/b.safetensors"),
        ("hf://me/loras@v1/b.safetensors", "https://hub.example/me/loras/resolve/v1/b.safetensors"),
    ],
)
def test_hub_paths_are_the_files_urls(path, url):
    assert hub_url(path, "hub.example") == url


def test_hub_path_without_a_file_is_a_clear_error(client, make_body):
    error = client.post("/v1/inference", json=make_body(loras=[{"path": "hf://me/loras"}])).json()["detail"]["error"]
    assert (error["code"], "names no file of the hub" in error["message"]) == ("LORA_DOWNLOAD_FAILED", True)


HOSTILE = [
    "1" * 5000,
    "1" * 4000,
    "true",
    "[" * 200_000,
    '"\\ud800"',
    '"' + "9" * 4_000_000 + '"',
    "1e999",
    '"0.7\\u0000"',
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:8])
@pytest.mark.parametrize("where", ["software", "version", "trigger", "step"])
def test_hostile_metadata_says_nothing_and_breaks_nothing(client, make_body, write, value, where):
    metadata = {
        "software": {"software": value},
        "version": {"software": '{"name": "ai-toolkit", "version": ' + value + "}"},
        "trigger": {"ss_tag_frequency": '{"1_' + value.strip('"') + '": {}}'},
        "step": {"training_info": '{"step": ' + value + "}"},
    }[where]
    path = write("hostile.safetensors", metadata=metadata)
    body = make_body(loras=[{"path": path}], profile="auto")
    answer = explained(client, body)
    assert len(json.dumps(answer)) < 20_000
    assert answer["effective"][0]["loras"][0]["receipt"]["step"] is None
    url = client.post("/v1/inference", json=body).json()["result_url"]
    assert client.get(url).status_code == 200
    assert client.get("/v1/loras").status_code == 200


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F32","shape":[2,2],"data_offsets":[0,1e999]}',
        '{"dtype":"F32","shape":["a",2],"data_offsets":[0,16]}',
        '{"dtype":"F32","shape":[-2,-2],"data_offsets":[0,16]}',
        '{"dtype":"F32","shape":[2,3],"data_offsets":[0,16]}',
        '{"dtype":"X9","shape":[2,2],"data_offsets":[0,16]}',
        '{"dtype":"F32","shape":3,"data_offsets":[0,16]}',
        '{"dtype":"F32","shape":[2,2],"data_offsets":7}',
    ],
)
def test_header_that_contradicts_itself_is_a_broken_file(client, config, make_body, entry):
    header = ('{"x.lora_A.weight":' + entry + "}").encode()
    Path(config.lora_root, "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    answer = client.post("/v1/inference", json=make_body(loras=[{"path": "odd.safetensors"}]))
    assert answer.json()["detail"]["error"]["code"] == "LORA_INVALID_FILE"


def test_key_that_utf8_cannot_encode_is_a_broken_file(client, config, make_body):
    """The safetensors library does not open such a file."""
    header = b'{"\\ud800.lora_A.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    Path(config.lora_root, "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    answer = client.post("/v1/inference", json=make_body(loras=[{"path": "odd.safetensors"}]))
    assert answer.json()["detail"]["error"]["code"] == "LORA_INVALID_FILE"


def test_trigger_word_passes_the_same_checks_as_the_prompt(client, make_body):
    for trigger, prompt in (("<|image_pad|>", "[trigger]"), ("x" * 10_000, "[trigger] [trigger] [trigger]")):
        body = make_body(prompt=prompt, trigger_word=trigger)
        error = client.post("/v1/inference", json=body).json()["detail"]["error"]
        assert (error["code"], error["details"]["parameter"]) == ("INVALID_PARAMETER", "prompt")
    assert (
        client.post("/v1/inference", json=make_body(prompt="no word", trigger_word="<|image_pad|>")).status_code == 200
    )


def test_secrets_of_a_url_are_not_in_the_record():
    url = "https://user:password@hub.example/a/b.safetensors?X-Amz-Signature=secret#part"
    assert without_url_secrets(url) == "https://hub.example/a/b.safetensors"
    assert without_url_secrets("job/lora.safetensors") == "job/lora.safetensors"
    # Nobody knows where the secrets of a URL are that cannot be read.
    assert without_url_secrets("https://user:secret@[/a.safetensors?key=secret") == "https://"


def test_models_show_the_divisor_of_the_configured_profile(client_with):
    client = client_with(models=[{"id": "qwen_image"}, {"id": "qwen_image_edit"}], preview_profile="trainer")
    assert [m["resolution_divisor"] for m in client.get("/v1/models").json()["models"]] == [32, 32]


class BrokenStore(MemoryFileSystem):
    """Says that its files are there, and gives none of them."""

    protocol = "broken"

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("broken://").strip("/")

    def _open(self, path, *args, **kwargs):
        raise PermissionError("403")


def test_store_that_answers_403_is_a_clear_error_of_its_own_request(client_with, make_body):
    fsspec.register_implementation("broken", BrokenStore, clobber=True)
    MemoryFileSystem().pipe_file("/shelf/job/lora.safetensors", safetensors_bytes())
    client = client_with(lora_root="broken://shelf")
    answer = client.post("/v1/inference", json=make_body())
    error = answer.json()["detail"]["error"]
    assert (answer.status_code, error["code"]) == (400, "LORA_DOWNLOAD_FAILED")
    [listed] = client.get("/v1/loras").json()["loras"]
    assert "could not be read" in listed["problem"]
