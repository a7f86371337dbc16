"""What comes out of a sweep: the contact sheet, the table and the archive."""

import base64
import csv
import io
import json
import zipfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import PIL.Image
import pytest
from starlette.testclient import TestClient

from serve_app.errors import EditError
from serve_app.images.contact_sheet import wrapped
from serve_app.images.similarity import ssim
from serve_app.intake.sweeps.layout import grid_of
from serve_app.jobs.sweeps.records import Axes
from serve_app.storage import artifact_keys
from serve_app.tasks import EditDone, EditEvent, EditTask
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import LORA, Application, InstantEditors
from tests.unit.sweeps import add_checkpoints, ended, started, sweep, sweep_body


class PaintingEditors(InstantEditors):
    """Editors whose images depend on adapters and seed. Without adapters, or with multiplier 0, they are those of the
    seed alone."""

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        async for event in super().edit(task):
            yield self._painted(task, event) if isinstance(event, EditDone) else event

    def _painted(self, task: EditTask, done: EditDone) -> EditDone:
        plan = task.plan
        image = noise_image(plan.width, plan.height, plan.seed)
        for use in plan.adapters:
            other = noise_image(plan.width, plan.height, int(sha256(use.path.encode()).hexdigest()[:6], 16))
            image = PIL.Image.blend(image, other, abs(use.scale) / 2)
        data = as_png(image)
        digest = sha256(data).hexdigest()
        key = artifact_keys.image(digest, ".png")
        self.artifacts.put(key, data)
        return replace(done, key=key, sha256=digest, url=self.artifacts.url(key), size_bytes=len(data))


@pytest.fixture(scope="module")
def shared_painter(shared_config) -> Iterator[TestClient]:
    """Its application makes real images. For tests that change nothing."""
    with TestClient(Application(shared_config, PaintingEditors).app) as client:
        yield client


@pytest.fixture(scope="module")
def finished_sweep(shared_painter, shared_config) -> str:
    """A sweep of no LoRA and two checkpoints with two multipliers and two seeds: ten cells."""
    paths = add_checkpoints(shared_config, "job_000000250.safetensors", "job_000000500.safetensors")
    axes = {"checkpoints": [None, *paths], "multipliers": [0.0, 1.0], "seeds": [1, 2]}
    sweep_id = started(shared_painter, {"base": small_body(), "axes": axes})["sweep_id"]
    assert ended(shared_painter, sweep_id)["status"] == "succeeded"
    return sweep_id


def small_body() -> dict:
    """A valid body with an image of its own."""
    image = as_base64(as_png(noise_image(64, 64)))
    prompt = {"prompt": "a cat", "width": 64, "height": 64, "sample_steps": 2, "ctrl_img": image}
    return {"model": "qwen_image_edit", "prompts": [prompt], "loras": [{"path": LORA}]}


@pytest.fixture
def painting(config) -> Application:
    return Application(config, PaintingEditors)


@pytest.fixture
def painter(painting) -> Iterator[TestClient]:
    with TestClient(painting.app) as client:
        yield client


def table(client: TestClient, sweep_id: str) -> list[dict[str, str]]:
    answer = client.get(f"/v1/sweeps/{sweep_id}/cells.csv")
    assert answer.status_code == 200
    return list(csv.DictReader(io.StringIO(answer.text)))


def sheet(client: TestClient, sweep_id: str, **params: object) -> PIL.Image.Image:
    answer = client.get(f"/v1/sweeps/{sweep_id}/sheet", params=params)
    assert answer.status_code == 200, answer.text
    return PIL.Image.open(io.BytesIO(answer.content))


def test_table_has_parameters_and_seconds_of_each_cell(shared_painter, finished_sweep):
    rows = table(shared_painter, finished_sweep)
    assert len(rows) == 10
    row = next(row for row in rows if row["step"] == "500" and row["multiplier"] == "1.0" and row["seed"] == "2")
    assert (row["checkpoint"], row["status"], row["seconds"]) == ("job/job_000000500.safetensors", "succeeded", "1.0")
    assert (row["quality"], row["width"], row["sample_steps"]) == ("exact", "64", "2")


def test_table_compares_with_the_image_without_lora_and_the_checkpoint_before(shared_painter, finished_sweep):
    rows = table(shared_painter, finished_sweep)
    images = {
        cell["cell"]: shared_painter.get(cell["url"]).content for cell in sweep(shared_painter, finished_sweep)["grid"]
    }
    decoded = {str(number): PIL.Image.open(io.BytesIO(data)) for number, data in images.items()}

    def the(**wanted: str) -> dict[str, str]:
        [row] = [row for row in rows if wanted.items() <= row.items()]
        return row

    base = the(checkpoint="", seed="1")
    assert (base["psnr_no_lora"], base["ssim_no_lora"], base["psnr_previous"]) == ("", "", "")
    zero = the(step="250", multiplier="0.0", seed="1")
    assert (zero["psnr_no_lora"], zero["ssim_no_lora"]) == ("inf", "1.0")
    first, second = the(step="250", multiplier="1.0", seed="1"), the(step="500", multiplier="1.0", seed="1")
    assert float(first["ssim_no_lora"]) == pytest.approx(ssim(decoded[first["cell"]], decoded[base["cell"]]), abs=1e-5)
    assert float(second["ssim_previous"]) == pytest.approx(
        ssim(decoded[second["cell"]], decoded[first["cell"]]), abs=1e-5
    )
    assert first["psnr_previous"] == ""
    assert 5 < float(first["psnr_no_lora"]) < 40


def test_measures_are_kept(painter, painting):
    sweep_id = started(painter, {"base": small_body(), "axes": {"multipliers": [0.0, 1.0]}})["sweep_id"]
    ended(painter, sweep_id)
    first = table(painter, sweep_id)
    assert any(row["psnr_no_lora"] for row in first)
    # Nothing is read again.
    for path in Path(painting.config.artifacts_url, "pictures").iterdir():
        path.write_bytes(b"damaged")
    assert table(painter, sweep_id) == first


def test_texts_of_the_table_are_no_formulas(painter):
    body = {"base": small_body(), "axes": {"prompts": ['=HYPERLINK("http://x")', "-1", "plain"]}}
    sweep_id = started(painter, body)["sweep_id"]
    ended(painter, sweep_id)
    prompts = {row["prompt"] for row in table(painter, sweep_id)}
    assert prompts == {'\'=HYPERLINK("http://x")', "'-1", "plain"}


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [({}, True), ({"neg": "fog"}, False), ({"ctrl_img": "/data/dog.png"}, False), ({"network_multiplier": 0.5}, False)],
)
def test_table_compares_with_the_training_preview(painter, config, make_body, changes, is_same):
    [path] = add_checkpoints(config, "job_000000250.safetensors")
    body = sweep_body(make_body, checkpoints=[path], seeds=[7, 8])
    [prompt] = body["base"]["prompts"]
    prompt |= {"prompt": "a cat", "width": 64, "height": 64, "sample_steps": 2, "guidance_scale": 3.0}
    body["base"]["profile"] = "trainer"
    folder = Path(config.lora_root, "job")
    (folder / "samples").mkdir()
    (folder / "cat.png").write_bytes(base64.b64decode(prompt["ctrl_img"]))
    sample = {"prompt": "a cat", "width": 64, "height": 64, "sample_steps": 2, "guidance_scale": 3, "seed": 7}
    sample |= {"ctrl_img": "/data/cat.png"} | changes
    process = {"model": {"arch": "qwen_image_edit"}, "sample": {"samples": [sample]}}
    (folder / "config.yaml").write_text(json.dumps({"config": {"name": "job", "process": [process]}}))
    noise_image(64, 64, 7).save(folder / "samples/1724085406830__000000250_0.jpg")
    sweep_id = started(painter, body)["sweep_id"]
    ended(painter, sweep_id)
    by_seed = {row["seed"]: row for row in table(painter, sweep_id)}
    assert (by_seed["7"]["psnr_training_preview"] != "") == is_same
    assert by_seed["8"]["psnr_training_preview"] == ""


def test_checkpoints_are_compared_by_step_whoever_was_named_first(painter, config):
    paths = add_checkpoints(config, *(f"job_{step:09}.safetensors" for step in (250, 500, 1000)))
    sweep_id = started(painter, {"base": small_body(), "axes": {"checkpoints": paths[1:]}})["sweep_id"]
    ended(painter, sweep_id)
    painter.post(f"/v1/sweeps/{sweep_id}/extend", json={"axes": {"checkpoints": paths[:1]}})
    ended(painter, sweep_id)
    by_step = {row["step"]: row for row in table(painter, sweep_id)}
    assert [by_step[step]["psnr_previous"] != "" for step in ("250", "500", "1000")] == [False, True, True]


def test_checkpoints_lie_on_the_sheet_by_step():
    axes = replace(
        AXES, checkpoints=(None, "b/x_000000500.safetensors", "b/x.safetensors", "b/x_000000250.safetensors")
    )
    columns = grid_of(axes).columns
    assert [column["checkpoint"] for column in columns] == [0, 3, 1, 2]


def test_sheet_has_a_cell_for_each_combination(shared_painter, finished_sweep):
    whole = sheet(shared_painter, finished_sweep, cell=64)
    assert whole.format == "PNG"
    # Seeds and multipliers are rows, checkpoints columns: more rows are higher, more columns wider.
    turned = sheet(shared_painter, finished_sweep, cell=64, columns="seeds,multipliers,checkpoints")
    assert turned.height < whole.height


def test_sheet_shows_the_images(shared_painter, finished_sweep):
    cells = sweep(shared_painter, finished_sweep)["grid"]
    first = next(cell for cell in cells if cell["place"]["checkpoint"] == 0 and cell["place"]["seed"] == 0)
    image = PIL.Image.open(io.BytesIO(shared_painter.get(first["url"]).content)).convert("RGB")
    whole = sheet(shared_painter, finished_sweep, cell=64).convert("RGB")
    # At its own size the image is in the sheet, pixel by pixel: without a LoRA in the rows of both multipliers, and
    # with either LoRA and multiplier 0.
    assert whole.tobytes().count(image.crop((0, 0, 64, 1)).tobytes()) == 4


def test_sheet_of_a_sweep_that_is_not_finished(painter, painting, config, make_body):
    painting.editors.errors.append(EditError("it went wrong"))
    painting.editors.gate.clear()
    paths = add_checkpoints(config, "job_000000250.safetensors", "job_000000500.safetensors")
    sweep_id = started(painter, sweep_body(make_body, checkpoints=paths, seeds=[1, 2]))["sweep_id"]
    waiting = sheet(painter, sweep_id, cell=64)
    painting.editors.gate.set()
    ended(painter, sweep_id)
    done = sheet(painter, sweep_id, cell=64)
    assert waiting.size == done.size
    assert (246, 213, 210) in {color for _, color in done.convert("RGB").getcolors(1_000_000)}
    assert (246, 213, 210) not in {color for _, color in waiting.convert("RGB").getcolors(1_000_000)}


@pytest.mark.parametrize(
    ("params", "accept", "media_type"),
    [
        ({}, "*/*", "image/png"),
        ({}, "image/webp,image/png", "image/webp"),
        ({"format": "jpeg"}, "image/webp", "image/jpeg"),
    ],
)
def test_format_of_a_sheet(shared_painter, finished_sweep, params, accept, media_type):
    answer = shared_painter.get(
        f"/v1/sweeps/{finished_sweep}/sheet", params=params | {"cell": 32}, headers={"Accept": accept}
    )
    assert answer.headers["content-type"] == media_type
    assert PIL.Image.open(io.BytesIO(answer.content)).get_format_mimetype() == media_type


def test_pages_of_a_sheet(shared_painter, finished_sweep):
    url, params = f"/v1/sweeps/{finished_sweep}/sheet", {"columns_per_page": 2, "rows_per_page": 3, "cell": 32}
    pages = [shared_painter.get(url, params=params | {"page": page}) for page in (1, 2, 3, 4)]
    assert [(page.headers["x-page"], page.headers["x-pages"]) for page in pages] == [
        (str(n), "4") for n in (1, 2, 3, 4)
    ]
    beyond = shared_painter.get(url, params=params | {"page": 5})
    assert (beyond.status_code, beyond.json()["detail"]["error"]["details"]["pages"]) == (400, 4)


@pytest.mark.parametrize("params", [{"rows": "nonsense"}, {"rows": "seeds", "columns": "seeds"}])
def test_rows_and_columns_are_axes(shared_painter, finished_sweep, params):
    answer = shared_painter.get(f"/v1/sweeps/{finished_sweep}/sheet", params=params)
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "INVALID_PARAMETER")


def test_page_that_is_too_large_is_refused(painter, config, make_body):
    body = sweep_body(make_body, seeds=list(range(100)), multipliers=[0.5, 1.0])
    sweep_id = started(painter, body)["sweep_id"]
    params = {"cell": 1024, "rows_per_page": 100, "columns_per_page": 100}
    answer = painter.get(f"/v1/sweeps/{sweep_id}/sheet", params=params)
    assert answer.json()["detail"]["error"]["details"]["parameter"] == "cell"
    painter.post(f"/v1/sweeps/{sweep_id}/cancel")


def test_archive_has_every_image_and_the_table(shared_painter, finished_sweep):
    answer = shared_painter.get(f"/v1/sweeps/{finished_sweep}/archive")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    names = [name for name in archive.namelist() if name.startswith("cells/")]
    assert len(names) == len(set(names)) == 10
    shown = sweep(shared_painter, finished_sweep)
    assert json.loads(archive.read("sweep.json"))["sweep_id"] == finished_sweep
    assert archive.read("cells.csv").decode() == shared_painter.get(f"/v1/sweeps/{finished_sweep}/cells.csv").text
    [name] = [name for name in names if name.startswith("cells/0003")]
    assert archive.read(name) == shared_painter.get(shown["grid"][3]["url"]).content
    assert name.endswith(".png")


AXES = Axes((None, "a/x_000000001.safetensors"), (0.5, 1.0), ("p", "q"), (1,), (("sha256:0",),), (None,), ("exact",))


def test_without_a_lora_there_is_one_cell_for_all_multipliers():
    grid = grid_of(AXES, columns=["checkpoints", "multipliers"])
    assert [dict(column) for column in grid.columns] == [
        {"checkpoint": 0, "multiplier": None},
        {"checkpoint": 1, "multiplier": 0},
        {"checkpoint": 1, "multiplier": 1},
    ]
    grid = grid_of(AXES)
    assert len(grid.columns) == 2
    assert len(grid.rows) == 4
    assert {grid.place(row, grid.columns[0]).multiplier for row in grid.rows} == {None}


def test_long_texts_are_wrapped_and_cut():
    lines = wrapped("word " * 100, 100, 14, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert len(wrapped("字" * 50, 100, 14, 9)) > 1
    assert wrapped("", 100, 14, 3) == [""]
