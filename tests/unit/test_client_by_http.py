"""The Python client against the application: every method once, sync and async, and what goes wrong."""

import asyncio
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import yaml
from anyio.from_thread import start_blocking_portal
from edits_client import AsyncClient, Client, ConnectionFailed, Lora, Retries, WaitTimeout, errors
from edits_client.events import Ended, ImageFinished, Preview, Queued, Started, Step

from serve_app.commands.ports import free_port
from serve_app.config import AppConfig, AuthConfig, read_ingress_settings
from serve_app.errors import OutOfMemory
from serve_app.intake.keys import new_key
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreview, StepPreviewStorage
from tests.conftest import as_png, noise_image
from tests.unit.clients import RETRIES, Blocking, Recorded
from tests.unit.conftest import IMAGE, Application, safetensors_bytes
from tests.unit.serving import Served, serving, wait_until

LORAS = [Lora("job/lora.safetensors", 0.5)]
SEEDS = count(1000)
PRESET = {"model": "qwen_image_edit", "loras": [{"path": "job/lora.safetensors"}], "sample_steps": 2, "size": "64x96"}


@pytest.fixture(scope="module")
def service(shared_config: AppConfig) -> Iterator[tuple[Served, list[str]]]:
    """One application for all tests, and the requests that it gets, as `METHOD path`."""
    application = Application(shared_config)
    calls: list[str] = []
    application.app.add_middleware(Recorded, calls=calls)
    application.service.reconfigure(*read_ingress_settings({"presets": {"house": PRESET}}))
    with serving(application) as served:
        yield served, calls


@pytest.fixture
def served(service: tuple[Served, list[str]]) -> Served:
    """The application, whose editors have done nothing yet."""
    served, calls = service
    served.let_go()
    served.application.editors.errors.clear()
    served.application.editors.tasks.clear()
    calls.clear()
    return served


@pytest.fixture
def calls(service: tuple[Served, list[str]], served: Served) -> list[str]:
    """The requests that the service got in this test, as `METHOD path`."""
    return service[1]


@pytest.fixture
def photograph() -> bytes:
    """A PNG of 96x64 pixels that no other test has sent."""
    return as_png(noise_image(96, 64, next(SEEDS)))


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Any]:
    """Both clients, one after the other."""
    if request.param == "sync":
        with Client(served.url, retries=RETRIES) as client:
            yield client
        return
    with start_blocking_portal() as portal:
        client = Blocking(portal, AsyncClient(served.url, retries=RETRIES))
        yield client
        client.close()


@pytest.fixture
def sync_client(served: Served) -> Iterator[Client]:
    with Client(served.url, retries=RETRIES) as client:
        yield client


def working(served: Served) -> None:
    """Wait until an editor has begun."""
    wait_until(lambda: served.application.editors.tasks)


def plan_of(served: Served) -> Any:
    return served.application.editors.tasks[-1].plan


def test_edit_is_a_png_in_the_shape_of_the_photograph(client, served, photograph, tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes(photograph)
    image = client.edit(str(file), "make it night", loras=LORAS, steps=2, seed=7)
    assert (image.data, image.format, image.seed, image.index) == (IMAGE, "png", 7, 0)
    assert image.save(tmp_path / "night.png").read_bytes() == IMAGE
    assert image.gpu_seconds > 0
    assert len(image.request_id) == 32
    plan = plan_of(served)
    # The photograph is 96x64.
    assert (plan.width, plan.height) == (1248, 832)
    assert [use.scale for use in plan.adapters] == [0.5]


@pytest.mark.parametrize("size", ["64x96", (64, 96)])
def test_size_in_pixels(client, served, photograph, size):
    client.edit(photograph, "x", loras=LORAS, steps=2, size=size)
    assert (plan_of(served).width, plan_of(served).height) == (64, 96)


def test_size_of_a_preset_stays(client, served, photograph):
    client.edit(photograph, "x", preset="house")
    plan = plan_of(served)
    assert (plan.width, plan.height, plan.steps, plan.preset) == (64, 96, 2, "house")


def test_events_tell_what_happens_and_end_with_the_result(client, photograph):
    job = client.submit(photograph, ["day", "night"], loras=LORAS, steps=2, seeds=[1, 2])
    happened = list(job.events())
    assert sorted(event.image for event in happened if isinstance(event, ImageFinished)) == [0, 1, 2, 3]
    assert any(isinstance(event, Started) for event in happened)
    assert [type(event) for event in happened].count(Ended) == 1
    end = happened[-1]
    assert isinstance(end, Ended)
    assert end.result.status == "succeeded"
    images = job.result()
    assert [(image.index, image.seed) for image in images] == [(0, 1), (1, 2), (2, 1), (3, 2)]


def test_waiting_request_is_queued_and_then_works(client, served, photograph):
    served.hold_back()
    job = client.submit(photograph, "x", preset="house")
    events = job.events()
    kinds = [Queued, Started, Step]
    for event in events:
        kinds = [kind for kind in kinds if not isinstance(event, kind)]
        if isinstance(event, Step):
            break
    # The place in the queue is only told if the request still waits when the stream begins.
    assert kinds in ([], [Queued])
    served.let_go()
    assert job.wait().status == "succeeded"


def test_file_is_sent_once(client, calls, photograph):
    for _ in range(3):
        client.submit(photograph, "x", preset="house")
        client.submit(PIL.Image.open(io.BytesIO(photograph)), "x", preset="house")
    # Pillow writes another file of the same pixels.
    assert calls.count("POST /v1/uploads") == len({photograph, as_png(PIL.Image.open(io.BytesIO(photograph)))})


def test_large_file_that_is_there_is_not_sent_again(client, served, calls):
    large = as_png(noise_image(1000, 700, next(SEEDS)))
    assert len(large) > 256 * 1024
    client.upload(large)
    with Client(served.url) as another:
        assert another.upload(large).width == 1000
    assert calls.count("POST /v1/uploads") == 1


def test_upload_that_was_deleted_meanwhile_is_sent_again(client, served, calls, photograph):
    # An upload that a request names is kept with it.
    client.explain(photograph, "x", preset="house")
    with Client(served.url) as another:
        another.delete_upload(another.upload(photograph).id)
    posted = calls.count("POST /v1/uploads")
    assert client.submit(photograph, "x", preset="house").result()
    assert client.explain(photograph, "x", preset="house").effective
    assert calls.count("POST /v1/uploads") == posted + 1


def test_deleted_upload_is_gone(client, photograph):
    upload = client.upload(photograph)
    client.delete_upload(upload.id)
    with pytest.raises(errors.UploadNotFound):
        client.delete_upload(upload.id)
    # The client does not believe that it is still there.
    assert client.upload(photograph).id == upload.id


def test_idempotency_key_names_one_request(client, photograph):
    key = f"mine {next(SEEDS)}"
    jobs = [client.submit(photograph, "x", preset="house", idempotency_key=key) for _ in range(3)]
    assert len({job.id for job in jobs}) == 1
    with pytest.raises(errors.IdempotencyConflict):
        client.submit(photograph, "y", preset="house", idempotency_key=key)
    assert client.submit(photograph, "x", preset="house").id != jobs[0].id


def test_cancelled_request_ends_as_such(client, served, photograph):
    served.hold_back()
    job = client.submit(photograph, "x", preset="house")
    working(served)
    job.cancel()
    served.let_go()
    assert job.wait(timeout=20).status == "canceled"
    assert list(job.events())[-1].result.status == "canceled"
    with pytest.raises(errors.EditCanceled) as raised:
        job.result()
    assert raised.value.job_id == job.id


def test_failed_request_raises_its_error(client, served, photograph):
    served.application.editors.errors = [OutOfMemory("it does not fit", {"bytes": 1})]
    with pytest.raises(errors.OutOfMemory, match="it does not fit") as raised:
        client.edit(photograph, "x", preset="house")
    assert isinstance(raised.value, errors.EditFailed)
    assert raised.value.details["prompt_index"] == 0
    assert client.job(raised.value.job_id).record().error_code == "OUT_OF_MEMORY"


def test_finished_images_of_a_failed_request_can_be_had(client, served, photograph):
    served.hold_back()
    job = client.submit(photograph, "x", preset="house", seeds=[1, 2, 3])
    working(served)
    served.application.editors.errors = [OutOfMemory("it does not fit")]
    served.let_go()
    record = job.wait(timeout=20)
    assert record.status == "failed"
    assert {image.data for image in job.images()} <= {IMAGE}
    assert len(job.images()) == len(record.metadata.partial)


@pytest.mark.parametrize(
    ("options", "error", "detail"),
    [
        ({"model": "no_such"}, errors.ModelNotFound, "supported_models"),
        ({"loras": ["no_such.safetensors"]}, errors.LoraNotFound, "lora_path"),
        ({"loras": ["../secret.safetensors"]}, errors.LoraPathForbidden, "lora_path"),
        ({"preset": "no_such"}, errors.PresetNotFound, "preset"),
        ({"steps": 0, "loras": LORAS}, errors.ValidationFailed, "faults"),
        ({"quality": "turbo", "loras": LORAS}, errors.QualityUnavailable, "quality"),
    ],
)
def test_refusal_is_an_error_of_its_code(client, photograph, options, error, detail):
    for method in (client.edit, client.submit, client.explain):
        with pytest.raises(error) as raised:
            method(photograph, "x", **options)
        assert detail in raised.value.details
        assert raised.value.status in (400, 422)


def test_what_is_no_image_is_refused_when_it_is_sent(client, tmp_path):
    with pytest.raises(errors.ControlImageInvalid):
        client.edit(b"no image", "x", loras=LORAS)
    with pytest.raises(FileNotFoundError):
        client.edit(tmp_path / "no_such.jpg", "x", loras=LORAS)


def test_unknown_request(client):
    job = client.job("0" * 32)
    for call in (job.status, job.record, job.cancel, job.preview, job.result, lambda: list(job.events())):
        with pytest.raises(errors.RequestNotFound) as raised:
            call()
        assert raised.value.details == {"request_id": "0" * 32}
        assert raised.value.status == 404


def test_request_of_another_process(client, served, photograph):
    with Client(served.url) as another:
        submitted = another.submit(photograph, "x", preset="house")
    assert client.job(submitted.id).result()[0].request_id == submitted.id


def test_waiting_ends_after_its_time_and_the_request_goes_on(client, served, photograph):
    served.hold_back()
    job = client.submit(photograph, "x", preset="house")
    for wait in (job.result, job.wait, lambda timeout: list(job.events(timeout=timeout))):
        with pytest.raises(WaitTimeout) as raised:
            wait(timeout=0.3)
        assert raised.value.job_id == job.id
    with pytest.raises(TimeoutError):
        client.edit(photograph, "x", preset="house", timeout=0.1)
    served.let_go()
    assert job.result(timeout=20)


def test_purged_images_are_an_error(client, photograph):
    job = client.submit(photograph, "x", preset="house")
    job.result()
    job.cancel(purge=True)
    with pytest.raises(errors.ImageNotFound, match="deleted"):
        job.result()
    assert job.images() == []


def test_explanation_says_what_would_be_done(client, calls, photograph):
    explanation = client.explain(photograph, ["a", "b"], loras=LORAS, steps=3)
    assert [(record.sample_steps, record.width, record.height) for record in explanation.effective] == [
        (3, 1248, 832),
        (3, 1248, 832),
    ]
    assert "POST /v1/inference" not in calls


def test_effective_request_makes_the_same_again(client, served, photograph):
    image = client.edit(photograph, "x", preset="house", seed=-1)
    first = plan_of(served)
    [record] = client.explain(photograph, "x", preset="house", seed=image.seed).effective
    again = client.submit_body(record.request).result()
    assert again[0].seed == image.seed
    assert (plan_of(served).width, plan_of(served).seed) == (first.width, first.seed)


def test_models_presets_and_loras(client, served):
    assert [model.id for model in client.models()] == ["qwen_image_edit"]
    [preset] = client.presets()
    assert (preset.name, preset.size, preset.problem) == ("house", "64x96", None)
    # More than a page.
    for number in range(60):
        Path(served.application.config.lora_root, f"job/{number:03}.safetensors").write_bytes(safetensors_bytes())
    found = list(client.loras())
    assert len(found) == len({lora.path for lora in found}) == 61
    assert [lora.path for lora in client.loras("007")] == ["job/007.safetensors"]
    assert client.lora("job/007.safetensors").receipt is not None
    with pytest.raises(errors.LoraNotFound):
        client.lora("job/no_such.safetensors")


def test_without_keys_there_is_no_history(client):
    for call in (client.usage, lambda: list(client.history())):
        with pytest.raises(errors.HistoryUnavailable):
            call()


def test_newest_preview_can_be_had_while_an_image_is_made(client, served, photograph):
    served.hold_back()
    job = client.submit(photograph, "x", preset="house")
    working(served)
    wait_until(lambda: job.status().progress.stage == "denoising")
    assert job.preview() is None
    storage = StepPreviewStorage(Artifacts(served.application.config.artifacts_url))
    storage.put(job.id, 0, StepPreview(1, b"a small JPEG"))
    assert job.preview(0) == b"a small JPEG"
    shown = next(event for event in job.events() if isinstance(event, Preview))
    assert (shown.image, shown.step, shown.jpeg) == (0, 1, b"a small JPEG")
    with pytest.raises(errors.ImageNotFound):
        job.preview(1)
    served.let_go()
    job.wait()


def test_keys_name_their_tenant(config, tmp_path, photograph):
    (key, hashed), (boss, boss_hash) = new_key(), new_key()
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"tenants": {"acme": [hashed]}, "operators": [boss_hash]}))
    auth = AuthConfig(keys_file=str(tmp_path / "keys.yaml"))
    options = {"loras": LORAS, "steps": 2, "size": "64x64"}
    with serving(Application(config.model_copy(update={"auth": auth}))) as served:
        with Client(served.url, retries=RETRIES) as nobody, pytest.raises(errors.Unauthorized):
            nobody.submit(photograph, "x", **options)
        with Client(served.url, key, retries=RETRIES) as client:
            jobs = [client.submit(photograph, "x", **options) for _ in range(52)]
            client.edit(photograph, "y", **options)
            # More than a page.
            history = list(client.history())
            assert [entry.request_id for entry in history[1:]] == [job.id for job in reversed(jobs)]
            assert {entry.tenant for entry in history} == {"acme"}
            assert list(client.history(status="failed")) == []
            now = datetime.now(UTC)
            assert list(client.history(since=now + timedelta(hours=1))) == []
            assert len(list(client.history(until=now + timedelta(hours=1), model="qwen_image_edit"))) == 53
            assert len(list(client.history(lora="job/lora.safetensors", tenant="acme"))) == 53
            [usage] = client.usage()
            assert (usage.tenant, usage.images > 0) == ("acme", True)
        with Client(served.url, boss, retries=RETRIES) as operator:
            assert len(list(operator.history(tenant="acme"))) == 53


def test_model_must_be_named_if_several_fit(sync_client, monkeypatch):
    both = sync_client.models() * 2
    monkeypatch.setattr(type(sync_client), "models", lambda self: both)
    with pytest.raises(ValueError, match="2 models that edit an image: qwen_image_edit, qwen_image_edit; name one"):
        sync_client.edit(b"", "x", loras=LORAS)
    with pytest.raises(ValueError, match="no model that need no image"):
        sync_client.edit([], "x", loras=LORAS)


def test_one_image_per_edit(sync_client, photograph):
    with pytest.raises(ValueError, match="use submit"):
        sync_client.edit(photograph, "x", seeds=[1, 2])


def test_finished_image_is_edited_further(sync_client, served, monkeypatch, photograph):
    monkeypatch.setattr("tests.unit.conftest.IMAGE", photograph)
    first = sync_client.edit(photograph, "x", preset="house")
    assert PIL.Image.open(io.BytesIO(first.data)).size == (96, 64)
    second = sync_client.edit(first, "y", preset="house")
    assert second.request_id != first.request_id


async def test_file_that_many_requests_name_at_once_is_sent_once(served, calls, photograph):
    async with AsyncClient(served.url, retries=RETRIES) as client:
        jobs = await asyncio.gather(*(client.submit(photograph, "x", preset="house") for _ in range(10)))
        results = await asyncio.gather(*(job.result() for job in jobs))
    assert len({job.id for job in jobs}) == len(results) == 10
    assert calls.count("POST /v1/uploads") == 1


def test_service_that_is_away_is_named(caplog):
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, retries=Retries(for_s=0.2, first_s=0.01)) as client, pytest.raises(ConnectionFailed, match=url):
        client.models()
    assert f"no complete answer from {url}" in caplog.text
    assert "trying again for up to 0.2 s" in caplog.text
