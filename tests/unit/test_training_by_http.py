"""The routes of training jobs, and previews that are made again by editors that make small images."""

import hashlib
import io
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import PIL.Image
import pytest
from starlette.testclient import TestClient

from serve_app.adapters.lora_root import LoraRoot
from serve_app.config import MINIATURE_RANDOM, AppConfig, AuthConfig, ModelConfig
from serve_app.errors import ControlImageInvalid
from serve_app.images.decoder_pool import Decoders
from serve_app.intake.keys import new_key
from serve_app.storage import artifact_keys
from serve_app.tasks import EditDone, EditEvent, EditTask
from tests.conftest import as_base64, as_png, noise_image
from tests.training_folder import (
    checkpoint_name,
    sample_name,
    trainer_config,
    write_checkpoints,
    write_config,
    write_sample_image,
)
from tests.unit.conftest import SHARES_AN_APPLICATION, Application, InstantEditors, safetensors_bytes

pytestmark = SHARES_AN_APPLICATION

JOB = "people/my_job"
URL = f"/v1/training-jobs/{JOB}"
# What the editors say that they compute in.
DTYPE, ADAPTERS = "bfloat16", "device"
SAMPLE = {"prompt": "[trigger] at night --s 2", "ctrl_img": "/home/me/control/cat.png", "width": 64, "height": 64}
VERSION = {"software": '{"name": "ai-toolkit", "version": "0.8.0"}', "training_info": '{"step": 400}'}


def image_of(seed: int) -> PIL.Image.Image:
    """The image that the editors of these tests make for a seed."""
    return noise_image(64, 64, seed)


async def edit(editors: InstantEditors, task: EditTask) -> AsyncGenerator[EditEvent]:
    editors.tasks.append(task)
    await editors.gate.wait()
    if editors.errors:
        raise editors.errors.pop(0)
    plan, data = task.plan, as_png(image_of(task.plan.seed))
    digest = hashlib.sha256(data).hexdigest()
    key = artifact_keys.image(digest, ".png")
    editors.artifacts.put(key, data)
    done = EditDone(key, editors.artifacts.url(key), "png", 64, 64, plan.seed, len(data), digest, {"generate": 1.0}, {})
    yield replace(done, runtime={"dtype": DTYPE, "adapter_weights": ADAPTERS})


@pytest.fixture(autouse=True)
def editors_make_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InstantEditors, "edit", edit)


def nearly(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image, a little brighter."""
    return image.point(lambda value: min(255, value + 8))


def as_jpeg(image: PIL.Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def root(config: AppConfig) -> Path:
    return Path(config.lora_root)


@pytest.fixture
def job(root: Path) -> Path:
    """A job with two samples, of which the steps 0 and 250 have images, and the control image of both."""
    folder = root / JOB
    write_config(folder, trainer_config(sample={"samples": [SAMPLE, SAMPLE | {"seed": 40}], "seed": 7}))
    write_checkpoints(folder, safetensors_bytes(metadata=VERSION), (250, None))
    for step in (0, 250):
        for number, seed in enumerate((7, 40)):
            write_sample_image(folder, sample_name(step, number), as_jpeg(image_of(seed)))
    (root / "control").mkdir()
    (root / "control/cat.png").write_bytes(as_png(noise_image(96, 64)))
    return folder


def redo(client: TestClient, **body: object) -> dict:
    """The previews once they have ended."""
    answer = client.post(f"{URL}/previews", json={"step": 250} | body)
    assert answer.status_code == 202, answer.json()
    return ended(client, answer.json()["status_url"])


def ended(client: TestClient, url: str) -> dict:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = client.get(url).json()
        if found["status"] not in ("in_queue", "in_progress"):
            return found
        time.sleep(0.01)
    raise AssertionError("the previews did not end")


def refused(client: TestClient, **body: object) -> dict:
    answer = client.post(f"{URL}/previews", json={"step": 250} | body)
    assert answer.status_code == 400, answer.json()
    return answer.json()["detail"]["error"]


def test_jobs_are_listed_with_their_files(client, job):
    [found] = client.get("/v1/training-jobs").json()["training_jobs"]
    assert found["name"] == JOB
    assert found["url"].endswith(URL)
    assert (found["model"], found["is_served"], found["trigger_word"]) == ("qwen_image_edit", True, "sks")
    assert (found["trainer_version"], found["profile"]) == ("0.8.0", "trainer-0.9.0")
    assert found["sample_steps"] == [0, 250]
    # Of the list of all jobs, the newest file alone is read.
    [unread] = found["checkpoints"]
    assert (unread["step"], unread["state"], unread["fits"]) == (250, "unknown", None)
    assert unread["size_bytes"] == found["final"]["size_bytes"] == (job / "my_job.safetensors").stat().st_size
    assert (found["final"]["state"], found["final"]["fits"]) == ("complete", ["qwen_image_edit"])


def test_one_job(client, job):
    found = client.get(URL).json()
    [checkpoint] = found["checkpoints"]
    assert (checkpoint["path"], checkpoint["step"]) == (f"{JOB}/{checkpoint_name('my_job', 250)}", 250)
    assert (checkpoint["state"], checkpoint["fits"], checkpoint["problem"]) == ("complete", ["qwen_image_edit"], None)
    # By its header: the config has 500.
    assert found["final"]["step"] == 400
    assert [(image["step"], image["sample"]) for image in found["sample_images"]] == [
        (0, 0),
        (0, 1),
        (250, 0),
        (250, 1),
    ]
    assert client.get(found["sample_images"][0]["url"]).content == as_jpeg(image_of(7))
    first, second = found["samples"]
    assert first["control_images"][0]["found"] == "control/cat.png"
    assert [fact["code"] for fact in first["facts"]] == ["JPEG"]
    digest = hashlib.sha256((job.parent.parent / "control/cat.png").read_bytes()).hexdigest()
    assert first["body"] == {
        "model": "qwen_image_edit",
        "loras": [{"path": f"{JOB}/my_job.safetensors", "network_multiplier": 1.0}],
        "prompts": [
            {
                "prompt": "sks at night",
                "neg": "",
                "width": 64,
                "height": 64,
                "seed": 7,
                "guidance_scale": 7.0,
                "sample_steps": 2,
                "ctrl_img_1": f"upload:{digest}",
            }
        ],
        "profile": "trainer-0.9.0",
        "output_format": "png",
        "priority": "bulk",
    }
    assert second["body"]["prompts"][0]["seed"] == 40


def test_body_of_a_sample_is_ready_to_send(client, job):
    [sample, _] = client.get(URL).json()["samples"]
    client.post("/v1/uploads", content=(job.parent.parent / "control/cat.png").read_bytes())
    result = client.post("/v1/inference?wait=30", json=sample["body"]).json()
    assert result["status"] == "succeeded"


def test_quoted_name_is_the_same_job(client, job):
    assert client.get("/v1/training-jobs/people%2Fmy_job").json() == client.get(URL).json()


def test_pages_of_jobs(client, root):
    for name in "abc":
        write_checkpoints(root / name, b"", (250,))
    write_config(root / "c", trainer_config(trigger_word="Ohwx"))
    first = client.get("/v1/training-jobs?limit=2").json()
    assert [each["name"] for each in first["training_jobs"]] == ["a", "b"]
    rest = client.get("/v1/training-jobs", params={"cursor": first["next_cursor"]}).json()
    assert ([each["name"] for each in rest["training_jobs"]], rest["next_cursor"]) == (["c"], None)
    found = client.get("/v1/training-jobs?search=ohwX").json()
    assert [each["name"] for each in found["training_jobs"]] == ["c"]


@pytest.mark.parametrize("end", [0, 4, 40, -1])
def test_checkpoint_in_the_making_is_no_error(client, job, end):
    whole = safetensors_bytes()
    (job / checkpoint_name("my_job", 750)).write_bytes(whole[:end])
    last = client.get(URL).json()["checkpoints"][-1]
    assert (last["state"], last["fits"]) == ("incomplete" if end != 4 else last["state"], [])
    assert last["problem"] is not None
    detail = refused(client, step=750)
    assert detail["code"] == "PREVIEWS_IMPOSSIBLE" or end == 4


def test_file_of_another_kind_says_why_it_does_not_fit(client, job):
    (job / checkpoint_name("my_job", 750)).write_bytes(safetensors_bytes({"lora_unet_x.lora_down.weight": (2, 2)}))
    last = client.get(URL).json()["checkpoints"][-1]
    assert (last["state"], last["fits"]) == ("unreadable", [])
    assert "does not fit" in last["problem"]


def test_config_in_the_making_is_no_error(client, job):
    config = (job / "config.yaml").read_text()
    (job / "config.yaml").write_text(config[: len(config) // 2])
    found = client.get(URL).json()
    assert found["samples"] == [] or found["problem"] is None
    assert len(found["sample_images"]) == 4
    (job / "config.yaml").unlink()
    assert "config.yaml" in client.get(URL).json()["problem"]
    assert refused(client)["code"] == "PREVIEWS_IMPOSSIBLE"


def test_thumbnail_is_made_where_the_trainer_made_none(client, job):
    name = sample_name(500, 0)
    write_sample_image(job, name, as_jpeg(noise_image(600, 400)))
    answer = client.get(f"{URL}/samples/{name}?thumbnail=true")
    assert answer.headers["content-type"] == "image/jpeg"
    assert PIL.Image.open(io.BytesIO(answer.content)).size == (300, 200)


@pytest.mark.parametrize("suffix", [".jpg.jpg", ".jpg"])
def test_thumbnail_of_the_trainer_is_sent(client, job, suffix):
    name, own = sample_name(250, 0), as_jpeg(noise_image(30, 30))
    write_sample_image(job, f".thumbs/{name.removesuffix('.jpg')}{suffix}", own)
    assert client.get(f"{URL}/samples/{name}?thumbnail=true").content == own


def test_thumbnail_of_the_trainer_in_the_making_is_not_sent(client, job):
    name, own = sample_name(250, 0), as_jpeg(noise_image(30, 30))
    write_sample_image(job, f".thumbs/{name}", own[:50])
    made = client.get(f"{URL}/samples/{name}?thumbnail=true").content
    assert PIL.Image.open(io.BytesIO(made)).size == (64, 64)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("thumbnail", ["true", "false"])
def test_image_in_the_making_is_not_found_yet(client, job, suffix, thumbnail):
    name, buffer = sample_name(500, 0, suffix=suffix), io.BytesIO()
    noise_image(64, 64).save(buffer, suffix.replace("jpg", "jpeg"))
    file = write_sample_image(job, name, buffer.getvalue()[:-20])
    url = f"{URL}/samples/{name}?thumbnail={thumbnail}"
    answer = client.get(url)
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "SAMPLE_NOT_FOUND")
    file.write_bytes(buffer.getvalue())
    assert client.get(url).status_code == 200


def test_only_what_is_needed_is_listed(client, job, root, monkeypatch):
    (root / "control/cat.png").rename(job / "cat.png")
    listed = []
    listing = LoraRoot.listing
    monkeypatch.setattr(LoraRoot, "listing", lambda self, under="": listed.append(under) or listing(self, under))
    client.get(f"{URL}/samples/{sample_name(250, 0)}?thumbnail=true")
    assert listed == []
    [image] = client.get(URL).json()["samples"][0]["control_images"]
    assert image["found"] == f"{JOB}/cat.png"
    assert set(listed) == {JOB}


def test_listing_of_a_bucket_is_kept_for_some_seconds(config, job, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.put(config.lora_root, "/of_training", recursive=True)
    application = Application(config.model_copy(update={"lora_root": "memory://of_training"}))
    listed = []
    listing = LoraRoot.listing
    monkeypatch.setattr(LoraRoot, "listing", lambda self, under="": listed.append(under) or listing(self, under))
    try:
        with TestClient(application.app) as client:
            for _ in range(3):
                assert len(client.get("/v1/training-jobs").json()["training_jobs"]) == 1
    finally:
        memory.rm("/of_training", recursive=True)
    assert listed == [""]


def test_image_that_makes_the_decoder_fail_is_not_decoded_here(client, job, monkeypatch):
    async def fail(*_: object) -> None:
        raise ControlImageInvalid("it makes the decoder fail")

    found = redo(client, step=400)
    monkeypatch.setattr(Decoders, "facts", fail)
    for module in ("jobs", "pairs"):
        monkeypatch.setattr(f"serve_app.intake.training.{module}.decode", None)
    url = f"{URL}/samples/{sample_name(250, 0)}"
    answer = client.get(f"{url}?thumbnail=true")
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "SAMPLE_NOT_FOUND")
    # The file itself is sent as it is.
    assert client.get(url).status_code == 200
    write_sample_image(job, sample_name(400, 0), as_jpeg(image_of(7)))
    pair, _ = client.get(f"{URL}/previews/{found['id']}").json()["pairs"]
    assert (pair["comparison"], pair["problem"]) == (None, "it makes the decoder fail")


def test_image_is_not_sent_again(client, job):
    url = f"{URL}/samples/{sample_name(250, 0)}"
    etag = client.get(url).headers["etag"]
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(f"{url}?thumbnail=true", headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "..%2Fconfig.yaml",
        "..%2Fmy_job.safetensors",
        "%2Fetc%2Fpasswd",
        "cat.jpg",
        f".tmp%2F{sample_name(250, 0)}",
        f".thumbs%2F{sample_name(250, 0)}",
    ],
)
def test_other_files_are_not_sent(client, job, name):
    for hidden in (".tmp", ".thumbs"):
        write_sample_image(job, f"{hidden}/{sample_name(250, 0)}", as_jpeg(image_of(1)))
    write_sample_image(job, "cat.jpg", as_jpeg(image_of(1)))
    answer = client.get(f"{URL}/samples/{name}")
    assert answer.status_code == 404


def test_sample_image_that_leads_out_of_the_root_is_not_sent(client, job, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(as_jpeg(image_of(1)))
    name = sample_name(500, 0)
    (job / "samples" / name).symlink_to(secret)
    for thumbnail in ("true", "false"):
        answer = client.get(f"{URL}/samples/{name}?thumbnail={thumbnail}")
        assert answer.json()["detail"]["error"]["code"] == "SAMPLE_NOT_FOUND"


def test_job_that_is_not_there(client):
    answer = client.get("/v1/training-jobs/nothing")
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "TRAINING_JOB_NOT_FOUND")


def test_previews_are_made_again_and_equal(client, application, job):
    found = redo(client)
    assert found["status"] == "succeeded"
    assert [pair["sample"] for pair in found["pairs"]] == [0, 1]
    for pair in found["pairs"]:
        assert pair["comparison"] == {"is_equal": True, "equal_share": 1.0, "psnr_db": None}
        assert pair["theirs"]["file"] == sample_name(250, pair["sample"])
        assert client.get(pair["theirs"]["url"]).status_code == 200
        assert client.get(pair["ours"]["url"]).content == as_png(image_of((7, 40)[pair["sample"]]))
    assert found["summary"].startswith("This service reproduces your previews: all 2 are equal in every pixel")
    plans = [task.plan for task in application.editors.tasks]
    assert {plan.seed for plan in plans} == {7, 40}
    assert {plan.profile for plan in plans} == {"trainer-0.9.0"}
    assert {plan.output_format for plan in plans} == {"png"}
    assert {use.path for plan in plans for use in plan.adapters} == {f"{JOB}/{checkpoint_name('my_job', 250)}"}


def test_previews_of_the_final_file_by_its_header(client, application, job):
    redo(client, step=400)
    assert {use.path for task in application.editors.tasks for use in task.plan.adapters} == {
        f"{JOB}/my_job.safetensors"
    }
    assert refused(client, step=500)["code"] == "PREVIEWS_IMPOSSIBLE"


def test_same_body_makes_nothing_again(client, application, job):
    first = redo(client)
    assert redo(client, samples=[1, 0, 1]) == first
    assert len(application.editors.tasks) == 2


def test_other_weights_under_the_same_name_are_made_anew(client, application, job):
    first = redo(client, samples=[0])
    assert redo(client, samples=[0])["id"] == first["id"]
    (job / checkpoint_name("my_job", 250)).write_bytes(safetensors_bytes(metadata=VERSION | {"name": "again"}))
    assert redo(client, samples=[0])["id"] != first["id"]


def test_sample_that_failed_is_made_again_with_the_next_post(client, application, job):
    application.editors.errors = [RuntimeError("no")]
    first = redo(client, samples=[0])
    [pair] = first["pairs"]
    assert (first["status"], pair["comparison"]) == ("failed", None)
    assert pair["ours"]["error"]
    assert "1 preview could not be made" in first["summary"]
    second = redo(client, samples=[0])
    assert (second["id"], second["status"]) == (first["id"], "succeeded")


def test_images_that_differ_have_figures(client, job):
    write_sample_image(job, sample_name(250, 0), as_jpeg(nearly(image_of(7))))
    found = redo(client)
    comparison = found["pairs"][0]["comparison"]
    assert comparison["is_equal"] is False
    assert 0 <= comparison["equal_share"] < 1
    assert 25 < comparison["psnr_db"] < 35
    assert found["summary"].startswith("1 of 2 previews are equal in every pixel; the others are ")
    # What this service does otherwise than the trainer is a cause, too.
    assert "The trainer applies the LoRA next to the weights" in found["summary"]
    assert "No setting" not in found["summary"]


def test_image_saved_with_another_quality_is_not_equal(client, job):
    write_sample_image(job, sample_name(250, 0), as_jpeg(image_of(7), quality=95))
    assert redo(client)["pairs"][0]["comparison"]["is_equal"] is False


def test_cause_of_a_difference_is_named(client, job):
    write_config(job, trainer_config(sample={"samples": [SAMPLE], "seed": 7}, model={"quantize": True}))
    write_sample_image(job, sample_name(250, 0), as_jpeg(nearly(image_of(7))))
    found = redo(client)
    codes = [fact["code"] for fact in found["pairs"][0]["facts"] if fact["differs"]]
    assert codes == ["QUANTIZED_BASE", "LORA_ROUNDING"]
    assert "quantised base" in found["summary"]
    assert "No setting" not in found["summary"]


def test_step_without_images_is_made_and_not_compared(client, job):
    for image in (job / "samples").iterdir():
        image.unlink()
    found = redo(client)
    assert {(pair["theirs"], pair["comparison"]) for pair in found["pairs"]} == {(None, None)}
    assert "Nothing could be compared" in found["summary"]


def test_image_of_another_size_is_not_compared(client, job):
    write_sample_image(job, sample_name(250, 0), as_jpeg(noise_image(96, 64)))
    [first, _] = redo(client)["pairs"]
    assert first["comparison"] is None
    assert "96x64" in first["problem"]


def test_deleted_checkpoint_is_told(client, job):
    (job / checkpoint_name("my_job", 250)).unlink()
    detail = refused(client)
    assert detail["code"] == "PREVIEWS_IMPOSSIBLE"
    assert detail["message"].startswith("there is no checkpoint of step 250")


def test_random_seed_is_left_out(client, job):
    items = [SAMPLE, SAMPLE | {"seed": -1}, SAMPLE | {"seed": 3, "network_multiplier": 9}]
    write_config(job, trainer_config(sample={"samples": items, "seed": 7}))
    found = redo(client)
    assert [pair["sample"] for pair in found["pairs"]] == [0]
    problems = {each["sample"]: each["problem"] for each in found["not_redone"]}
    assert set(problems) == {1, 2}
    assert "the trainer drew one" in problems[1]
    assert "network_multiplier 9" in problems[2]
    assert "seed -1" in refused(client, samples=[1])["message"]


def test_step_zero_is_the_base_model(client, application, job):
    assert redo(client, step=0)["status"] == "succeeded"
    # This service takes no request without a LoRA: the newest one has no effect.
    [uses] = {task.plan.adapters for task in application.editors.tasks}
    assert [(use.path, use.scale) for use in uses] == [(f"{JOB}/my_job.safetensors", 0.0)]


def test_step_zero_has_no_lora_where_none_is_needed(client_with, config, job):
    client = client_with(require_lora=False)
    previews = client.post(f"{URL}/previews", json={"step": 0}).json()
    status = client.get(previews["status_url"]).json()
    request = client.get(f"/v1/requests/{status['pairs'][0]['ours']['request_id']}/status")
    assert request.status_code == 200


def test_step_zero_without_any_weights_is_refused_in_one_sentence(client, job):
    for file in job.glob("*.safetensors"):
        file.unlink()
    detail = refused(client, step=0)
    assert detail["code"] == "LORA_FILE_REQUIRED"
    assert "require_lora" in detail["message"]


def test_unknown_sample_is_refused(client, job):
    assert "samples 0 to 1" in refused(client, samples=[2])["message"]


def test_control_image_that_is_not_here_is_asked_for_by_name(client, application, job, root):
    (root / "control/cat.png").unlink()
    detail = refused(client)
    assert detail["code"] == "CONTROL_IMAGE_REQUIRED"
    assert "/home/me/control/cat.png" in detail["message"]
    assert '{"cat.png": "upload:<id>"' in detail["message"]
    upload = client.post("/v1/uploads", content=as_png(noise_image(32, 32))).json()["id"]
    for name in ("cat.png", "/home/me/control/cat.png"):
        assert redo(client, control_images={name: f"upload:{upload}"})["status"] == "succeeded"
    assert {task.plan.control_images for task in application.editors.tasks} == {(upload,)}


def test_control_image_may_be_in_the_body(client, application, job, root):
    (root / "control/cat.png").unlink()
    data = as_png(noise_image(32, 32))
    assert redo(client, control_images={"cat.png": as_base64(data)})["status"] == "succeeded"
    assert {task.plan.control_images for task in application.editors.tasks} == {(hashlib.sha256(data).hexdigest(),)}
    for image in ("part:image", "photos/cat.png", as_base64(b"no image")):
        assert refused(client, control_images={"cat.png": image})["code"] == "CONTROL_IMAGE_INVALID"


def test_named_control_image_wins_over_a_file(client, application, job):
    upload = client.post("/v1/uploads", content=as_png(noise_image(32, 32))).json()["id"]
    redo(client, control_images={"cat.png": f"upload:{upload}"})
    assert {task.plan.control_images for task in application.editors.tasks} == {(upload,)}


def test_model_that_is_not_served_is_named(client, job):
    write_config(job, trainer_config(arch="qwen_image_2512", sample={"prompts": ["a cat"]}))
    assert refused(client)["code"] == "MODEL_NOT_FOUND"
    write_config(job, trainer_config(arch="flux", sample={"prompts": ["a cat"]}))
    assert "'flux'" in refused(client)["message"]


def test_setting_beyond_the_services_limits_is_named(client, job):
    write_config(job, trainer_config(sample={"samples": [SAMPLE | {"guidance_scale": 99}]}))
    detail = refused(client)
    assert "sample 0" in detail["message"]
    assert "guidance_scale" in detail["message"]
    [sample] = client.get(URL).json()["samples"]
    assert (sample["body"], sample["problem"]) == (None, detail["message"])


@pytest.mark.parametrize("sample", [{"seed": 10**400}, {"samples": [SAMPLE | {"guidance_scale": 10**400}]}])
def test_number_of_400_digits_takes_nothing_else_away(client, job, sample):
    write_config(job, trainer_config(sample={"samples": [SAMPLE]} | sample, train={"steps": 10**400}))
    [entry] = client.get("/v1/training-jobs").json()["training_jobs"]
    assert entry["name"] == JOB
    assert len(client.get(URL).json()["sample_images"]) == 4
    assert refused(client)["code"] == "PREVIEWS_IMPOSSIBLE"


def test_low_vram_asks_for_tiles(client, application, job):
    write_config(job, trainer_config(sample={"samples": [SAMPLE]}, model={"low_vram": True}))
    redo(client)
    assert [task.plan.vae_tiling for task in application.editors.tasks] == [True]


def test_previews_survive_a_restart(config, job):
    with TestClient(Application(config).app) as client:
        started = client.post(f"{URL}/previews", json={"step": 250}).json()
        path = started["status_url"].removeprefix("http://testserver")
        ended(client, path)
    restarted = Application(config)
    with TestClient(restarted.app) as client:
        assert ended(client, path)["status"] == "succeeded"
        assert client.post(f"{URL}/previews", json={"step": 250}).json() == started
    assert restarted.editors.tasks == []


@pytest.mark.parametrize(
    ("model", "train", "codes"),
    [
        ({"low_vram": True}, {}, {"JPEG": False, "TILED_VAE": True}),
        ({"quantize_te": True}, {}, {"JPEG": False, "QUANTIZED_BASE": True}),
        ({}, {"ema_config": {"use_ema": True}}, {"JPEG": False, "EMA": False}),
    ],
)
def test_facts_say_whether_they_make_a_difference(client, job, model, train, codes):
    write_config(job, trainer_config(sample={"samples": [SAMPLE]}, model=model, train=train))
    [sample] = client.get(URL).json()["samples"]
    assert {fact["code"]: fact["differs"] for fact in sample["facts"]} == codes


def test_root_may_be_in_any_store(config, job):
    memory = fsspec.filesystem("memory")
    memory.put(config.lora_root, "/of_training", recursive=True)
    application = Application(config.model_copy(update={"lora_root": "memory://of_training"}))
    try:
        with TestClient(application.app) as client:
            [entry] = client.get("/v1/training-jobs").json()["training_jobs"]
            assert entry["checkpoints"][0]["size_bytes"] == (job / "my_job.safetensors").stat().st_size
            found = client.get(URL).json()
            assert [each["state"] for each in (*found["checkpoints"], found["final"])] == ["complete", "complete"]
            [image, *_] = found["sample_images"]
            assert client.get(image["url"]).content == as_jpeg(image_of(7))
            assert client.get(image["thumbnail_url"]).status_code == 200
            assert redo(client)["summary"].startswith("This service reproduces your previews")
    finally:
        memory.rm("/of_training", recursive=True)


@pytest.mark.parametrize(
    ("ours", "theirs", "step", "codes"),
    [
        ("bfloat16", "bf16", 250, ["LORA_ROUNDING"]),
        ("bfloat16", "bf16", 0, []),
        ("float32", "bf16", 250, ["DTYPE"]),
        ("bfloat16", "float32", 0, ["DTYPE"]),
        ("float32", "fp32", 250, []),
        ("float32", None, 250, []),
    ],
)
def test_what_an_editor_does_otherwise_is_a_fact(client, job, monkeypatch, ours, theirs, step, codes):
    monkeypatch.setattr("tests.unit.test_training_by_http.DTYPE", ours)
    write_config(job, trainer_config(sample={"samples": [SAMPLE]}, train={"dtype": theirs}))
    [pair] = redo(client, step=step)["pairs"]
    assert [fact["code"] for fact in pair["facts"] if fact["differs"]] == codes


def test_loras_next_to_the_weights_are_as_in_training(client, job, monkeypatch):
    monkeypatch.setattr("tests.unit.test_training_by_http.ADAPTERS", "hooks")
    [pair, _] = redo(client)["pairs"]
    assert [fact["code"] for fact in pair["facts"] if fact["differs"]] == []


@pytest.mark.parametrize("previews_id", ["x", "250-" + "0" * 32, "0" * 200])
def test_previews_that_nobody_made_are_not_found(client, job, previews_id):
    answer = client.get(f"{URL}/previews/{previews_id}")
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "PREVIEWS_NOT_FOUND")


@pytest.fixture
def tenants(config: AppConfig, tmp_path: Path) -> Iterator[tuple[TestClient, dict, dict]]:
    (red, red_hash), (blue, blue_hash) = new_key(), new_key()
    file = tmp_path / "keys.yaml"
    file.write_text(f"tenants: {{red: [{red_hash}], blue: {{keys: [{blue_hash}], allow: ['{JOB}/**']}}}}")
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    with TestClient(application.app) as client:
        yield client, {"X-API-Key": red}, {"X-API-Key": blue}


def test_previews_belong_to_their_tenant(tenants, job):
    client, red, blue = tenants
    url = client.post(f"{URL}/previews", json={"step": 250}, headers=red).json()["status_url"]
    assert client.get(url, headers=red).status_code == 200
    assert client.get(url, headers=blue).json()["detail"]["error"]["code"] == "PREVIEWS_NOT_FOUND"
    assert client.get(URL).status_code == 401


def test_tenant_has_no_control_images_of_other_folders(tenants, job, root):
    client, red, blue = tenants
    for key, found in ((red, "control/cat.png"), (blue, None)):
        [image] = client.get(URL, headers=key).json()["samples"][0]["control_images"]
        assert image["found"] == found
    answer = client.post(f"{URL}/previews", json={"step": 250}, headers=blue)
    assert answer.json()["detail"]["error"]["code"] == "CONTROL_IMAGE_REQUIRED"
    (root / "control/cat.png").rename(job / "cat.png")
    assert client.post(f"{URL}/previews", json={"step": 250}, headers=blue).status_code == 202


def test_edit_plus_sees_ctrl_img_twice_only_in_training(config, root, job):
    model = ModelConfig(id="qwen_image_edit_plus", checkpoint=MINIATURE_RANDOM)
    application = Application(config.model_copy(update={"models": (model,)}))
    items = [SAMPLE, {**SAMPLE, "ctrl_img": None, "ctrl_img_1": SAMPLE["ctrl_img"]}]
    plus = trainer_config(arch="qwen_image_edit_plus", base="Qwen/Qwen-Image-Edit-2509", sample={"samples": items})
    write_config(job, plus)
    with TestClient(application.app) as client:
        twice, once = client.get(URL).json()["samples"]
    assert [fact["code"] for fact in twice["facts"]] == ["JPEG", "CONTROL_IMAGE_TWICE"]
    assert [fact["code"] for fact in once["facts"]] == ["JPEG"]
    assert twice["body"] == once["body"]
    assert [key for key in twice["body"]["prompts"][0] if key.startswith("ctrl")] == ["ctrl_img_1"]
