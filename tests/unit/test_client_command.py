"""The command `edits`, in this process, against the application on loopback."""

import io
import json
import re
import shutil
import stat
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import yaml
from click.testing import Result
from edits_client.cli import context, names, progress
from edits_client.cli.main import app
from edits_client.cli.settings import settings_file
from edits_client.errors import ApiError
from edits_client.retries import Retries
from rich.console import Console
from typer.testing import CliRunner

from serve_app.commands.ports import free_port
from serve_app.config import SQLITE_PREFIX, AuthConfig, read_ingress_settings
from serve_app.errors import OutOfMemory
from serve_app.intake.keys import new_key
from serve_app.schemas.sweeps import SweepAxes
from serve_app.tasks import EditEvent, EditTask
from tests.conftest import as_png, noise_image
from tests.unit.clients import RETRIES
from tests.unit.conftest import Application, config_in
from tests.unit.serving import Served, serving, wait_until

PRESET = {"model": "qwen_image_edit", "loras": [{"path": "job/lora.safetensors"}], "sample_steps": 2, "size": "64x96"}
LORA = ("--lora", "job/lora.safetensors")
FAST = ("--steps", "2", "--size", "64x64")
COMMANDS = (
    *("edit", "submit", "explain", "status", "watch", "get", "cancel", "ls", "usage", "models", "presets", "loras"),
    *("login", "training-jobs", "preview"),
)
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(migrated_sqlite, folder / "jobs.sqlite3")
    application = Application(config_in(folder, f"{SQLITE_PREFIX}{folder}/jobs.sqlite3"))
    application.service.reconfigure(*read_ingress_settings({"presets": {"house": PRESET}}))
    with serving(application) as served:
        yield served


@pytest.fixture
def served(service: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The application, whose editors make real images and have done nothing yet."""
    monkeypatch.setattr("tests.unit.conftest.IMAGE", as_png(noise_image(64, 64, 5)))
    service.let_go()
    service.application.editors.errors.clear()
    service.application.editors.tasks.clear()
    return service


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photograph. The user's config folder is in it, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EDITS_API_KEY", raising=False)
    monkeypatch.delenv("EDITS_URL", raising=False)
    monkeypatch.setattr(context, "RETRIES", RETRIES)
    (tmp_path / "photo.png").write_bytes(as_png(noise_image(96, 64)))
    return tmp_path


@pytest.fixture
def edits(served: Served, folder: Path) -> Run:
    """Run the command for the application: `edits("ls", "-n", "5")`."""

    def run(*arguments: str, **options: Any) -> Result:
        return invoke("--url", served.url, *arguments, **options)

    return run


def invoke(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="edits", **options)


def done(result: Result) -> str:
    """The output of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return result.stdout


def submitted(edits: Run, *arguments: str) -> str:
    """The id of a new request."""
    return done(edits("submit", "photo.png", "x", "--preset", "house", *arguments)).strip()


def working(served: Served) -> None:
    wait_until(lambda: served.application.editors.tasks)


def test_edit_writes_the_image_and_says_what_it_is(edits, folder):
    said = done(edits("edit", "photo.png", "make it night", *LORA, *FAST, "--seed", "7", "-o", "night.png"))
    assert said.startswith("night.png  64x64, seed 7, ")
    assert PIL.Image.open(folder / "night.png").size == (64, 64)


def test_limits_of_the_loss_are_those_of_the_request(edits):
    limits = ("--min-psnr", "35", "--min-ssim", "0.9")
    noted = edits("explain", "photo.png", "x", "--preset", "house", *limits)
    assert "note: max_loss has no effect" in done(noted) + noted.stderr
    refused = edits("explain", "photo.png", "x", "--preset", "house", "--min-ssim", "2")
    assert "--min-ssim: Input should be less than or equal to 1" in refused.stderr


def test_errors_name_the_commands_that_help(edits):
    refused = edits("edit", "photo.png", "x", "--lora", "job/other.safetensors")
    assert "there is no LoRA file 'job/other.safetensors' under the LoRA root; `edits loras` lists" in refused.stderr
    refused = edits("submit", "photo.png", "x", "--preset", "none")
    assert "`edits presets` lists them" in refused.stderr
    refused = edits("preview", "none", "--step", "1")
    assert "`edits training-jobs` lists them" in refused.stderr


def test_a_job_s_name_with_a_space_is_quoted_in_a_command():
    message = "the training job 'my job' has no checkpoint; GET /v1/training-jobs/my job lists those that it has"
    said = names.error_text(ApiError(message, code="LORA_NOT_FOUND", status=400))
    assert "; `edits training-jobs 'my job'` lists those that it has" in said


def test_a_missing_file_is_named_without_the_number_of_the_error(edits):
    missing = edits("edit", "no.png", "x", "--preset", "house")
    assert (missing.exit_code, missing.stderr) == (1, "error: no.png: No such file or directory\n")


def test_edit_without_output_takes_a_free_name(edits, folder):
    for _ in range(2):
        done(edits("edit", "photo.png", "x", "--preset", "house"))
    done(edits("edit", "photo.png", "x", "--preset", "house", "--format", "jpeg", "--seed", "1", "--seed", "2"))
    names = sorted(path.name for path in folder.glob("photo-*"))
    assert names == ["photo-edit-2.jpg", "photo-edit-2.png", "photo-edit.jpg", "photo-edit.png"]


def test_strengths_make_an_image_each_and_a_sheet(edits, served, folder):
    arguments = ("--multiplier", "0,0.5,1", "--sheet", "sheet.png", "-o", "out.png")
    said = done(edits("edit", "photo.png", "x", *LORA, *FAST, *arguments))
    scales = {use.scale for task in served.application.editors.tasks for use in task.plan.adapters}
    assert scales == {0.0, 0.5, 1.0}
    assert [line.split("  ")[0] for line in said.splitlines()] == ["out-0.png", "out-1.png", "out-2.png", "sheet.png"]
    assert "x0.5, 64x64, seed 42" in said
    sheet = PIL.Image.open(folder / "sheet.png")
    assert sheet.width > 3 * 64


def test_json_of_an_edit(edits, folder):
    said = json.loads(done(edits("edit", "photo.png", "x", "--preset", "house", "-o", "o.webp", "--json")))
    [image] = said["images"]
    assert (image["path"], image["format"], image["width"], image["seed"]) == ("o.webp", "webp", 64, 42)


def test_request_is_submitted_followed_and_downloaded(edits, folder):
    request_id = submitted(edits, "--seed", "1", "--seed", "2")
    assert done(edits("watch", request_id)) == f"succeeded; edits get {request_id} writes its images\n"
    assert "succeeded: 2 of 2 images, 4 of 4 steps" in done(edits("status", request_id))
    assert json.loads(done(edits("status", request_id, "--json")))["progress"]["images_done"] == 2
    done(edits("get", request_id, "-o", "got.png"))
    assert sorted(path.name for path in folder.glob("got-*")) == ["got-0.png", "got-1.png"]
    assert json.loads(done(edits("watch", request_id, "--json")))["status"] == "succeeded"


def test_waiting_request_is_cancelled(edits, served):
    served.hold_back()
    detached = edits("edit", "photo.png", "x", "--preset", "house", "--detach")
    request_id = done(detached).strip()
    working(served)
    assert "in_progress" in done(edits("status", request_id))
    done(edits("cancel", request_id))
    served.let_go()
    watched = edits("watch", request_id)
    assert (watched.exit_code, "EDIT_CANCELED" in watched.stderr) == (context.FAILED, True)
    got = edits("get", request_id)
    assert (got.exit_code, "no image is finished" in got.stderr) == (context.REFUSED, True)


def test_failed_edit_saves_what_is_finished(edits, served, folder, monkeypatch):
    editors = served.application.editors
    made = editors.edit

    async def edit(task: EditTask) -> AsyncGenerator[EditEvent]:
        # The last of three images is taken up once one is finished.
        if len(editors.tasks) == 2:
            raise OutOfMemory("it does not fit")
        async for event in made(task):
            yield event

    monkeypatch.setattr(editors, "edit", edit)
    result = edits(
        "edit", "photo.png", "x", "--preset", "house", *(each for seed in "123" for each in ("--seed", seed))
    )
    assert (result.exit_code, "it does not fit (OUT_OF_MEMORY)" in result.stderr) == (context.FAILED, True)
    written = sorted(path.name for path in folder.glob("photo-edit*"))
    assert sorted(line.split()[0] for line in result.stdout.splitlines()) == written
    assert "photo-edit.png" in written


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("edit", "photo.png", "x", "--lora", "no_such.safetensors"), context.REFUSED, "LORA_NOT_FOUND"),
        (("edit", "no_such.png", "x", *LORA), context.REFUSED, "no_such.png"),
        (("edit", "photo.png", "x", *LORA, "--steps", "0"), context.REFUSED, "error: --steps: Input should be"),
        (("edit", "photo.png", "x", *LORA, "--seed", "-5"), context.REFUSED, "error: --seed: Input should be"),
        (("edit", "photo.png", "x"), context.REFUSED, "error: loras is empty; this service needs"),
        (
            ("sweep", "photo.png", "x", "--multiplier", "1,2"),
            context.REFUSED,
            "there is no LoRA for them; name one in",
        ),
        (
            ("sweep", "photo.png", "x", *LORA, "--seed", "-5", "--profile", "no\\such"),
            context.REFUSED,
            "error: --seed: Input should be",
        ),
        (("edit", "photo.png", "x", "--lora", "a:5"), 2, "from -2 to 2"),
        (("edit", "photo.png", "x", *LORA, "--multiplier", "0,3"), 2, "from -2 to 2"),
        (("edit", "photo.png", "x", "--multiplier", "1"), 2, "--lora"),
        (("edit", "photo.png", "x", *LORA, "-o", "out.bmp"), 2, "out.bmp"),
        (("edit", "photo.png", "x", *LORA, "-o", "out.png", "--format", "jpeg"), 2, "out.png cannot hold jpeg"),
        (("edit", "photo.png", "x", *LORA, "-o", "no/folder/out.png"), 2, "no/folder/out.png"),
        (("edit", "photo.png", "x", *LORA, "--sheet", "sheet.txt"), 2, "sheet.txt"),
        (("status", "0" * 32), context.REFUSED, "REQUEST_NOT_FOUND"),
        (("loras", "show", "no_such.safetensors"), context.REFUSED, "LORA_NOT_FOUND"),
        (("ls",), context.REFUSED, "HISTORY_UNAVAILABLE"),
        (("usage",), context.REFUSED, "HISTORY_UNAVAILABLE"),
    ],
)
def test_error_ends_the_command_with_its_code_and_without_a_traceback(edits, arguments, code, said):
    result = edits(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_for_programs(edits):
    result = edits("status", "0" * 32, "--json")
    assert (result.exit_code, json.loads(result.stderr)["error"]["code"]) == (1, "REQUEST_NOT_FOUND")


def test_service_that_is_not_there(folder, monkeypatch):
    monkeypatch.setattr(context, "RETRIES", Retries(for_s=0.3, first_s=0.1))
    url = f"http://127.0.0.1:{free_port()}"
    result = invoke("--url", url, "models")
    assert result.exit_code == context.UNREACHABLE
    assert "trying again for up to 0.3 s" in result.stderr
    assert url in result.stderr.splitlines()[-2]
    assert invoke("--url", "localhost:8000", "models").exit_code == context.REFUSED


def test_waiting_no_longer_than_said(edits, served):
    served.hold_back()
    result = edits("edit", "photo.png", "x", "--preset", "house", "--timeout", "0.2")
    served.let_go()
    assert result.exit_code == context.LATE
    assert "edits watch" in result.stderr


def test_interrupted_without_a_terminal_the_request_goes_on(edits, served, monkeypatch):
    monkeypatch.setattr("edits_client.cli.making.watch", interrupted)
    result = edits("edit", "photo.png", "x", "--preset", "house")
    assert result.exit_code == context.INTERRUPTED
    working(served)
    request_id = served.application.editors.tasks[-1].request_id
    assert f"request {request_id} goes on; to follow it: edits watch {request_id}" in result.stderr


@pytest.mark.parametrize(("answer", "status"), [("y\n", "canceled"), ("n\n", "succeeded"), (None, "succeeded")])
def test_interrupted_in_a_terminal_the_user_is_asked(edits, served, monkeypatch, answer, status):
    """`None`: Ctrl-C in place of an answer."""
    served.hold_back()
    # Not before an editor works on the request: one that is canceled earlier never comes to an editor.
    monkeypatch.setattr("edits_client.cli.making.watch", lambda *_: interrupted(working(served)))
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    if answer is None:
        monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
    result = edits("edit", "photo.png", "x", "--preset", "house", "--seed", "1", input=answer)
    assert result.exit_code == context.INTERRUPTED
    assert "Cancel the request?" in result.stderr
    request_id = served.application.editors.tasks[-1].request_id
    served.let_go()
    assert (f"edits watch {request_id}" in result.stderr) == (status == "succeeded")
    assert json.loads(edits("watch", request_id, "--json").stdout)["status"] == status


def interrupted(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


def test_lists(edits):
    assert "qwen_image_edit" in done(edits("models"))
    assert json.loads(done(edits("models", "--json")))[0]["id"] == "qwen_image_edit"
    assert "house" in done(edits("presets"))
    assert json.loads(done(edits("presets", "--json")))[0]["size"] == "64x96"
    assert "job/lora.safetensors" in done(edits("loras"))
    assert json.loads(done(edits("loras", "--search", "no_such", "--json"))) == []
    assert "receipt.kind" in done(edits("loras", "show", "job/lora.safetensors"))
    assert json.loads(done(edits("loras", "show", "job/lora.safetensors", "--json")))["path"] == "job/lora.safetensors"


def test_lines_are_as_long_as_they_are_without_a_terminal(edits, served):
    """So that scripts can read them."""
    long = "a" * 150
    path = Path(served.application.config.lora_root, f"job/{long}.safetensors")
    path.write_bytes(Path(served.application.config.lora_root, "job/lora.safetensors").read_bytes())
    assert f"job/{long}.safetensors" in done(edits("loras"))
    path.unlink()


def test_notes_are_what_the_service_says(edits):
    arguments = ("explain", "photo.png", "[trigger] x", *LORA, "--negative", "fog", "--guidance", "1")
    said = "neg of prompt 0 is not used, since guidance_scale 1 is not above 1"
    assert f"note: {said}" in edits(*arguments).stderr
    assert said in json.loads(done(edits(*arguments, "--json")))["notes"]


def test_programs_get_the_names_of_fields(edits):
    refused = edits("edit", "photo.png", "x", *LORA, "--steps", "0", "--json")
    assert json.loads(refused.stderr)["error"]["message"].startswith("prompts.0.sample_steps: ")


@pytest.mark.parametrize(
    ("place", "option"),
    [
        (("body", "prompts", 0, "ctrl_img_3"), "the second --image"),
        (("body", "prompts", 0, "prompt"), "PROMPT"),
        (("body", "loras", 1, "network_multiplier"), "the strength of --lora"),
        (("body", "base", "prompts", 0, "guidance_scale"), "--guidance"),
        (("body", "axes", "checkpoints", 0, "from_step"), "--checkpoint"),
        (("body", "axes", "prompts", 1), "--prompt"),
        (("body", "webhook_url"), None),
    ],
)
def test_the_option_of_each_place_in_a_body(place, option):
    assert names.option_at(place) == option


@pytest.mark.parametrize("axis", SweepAxes.model_fields)
def test_each_axis_of_a_sweep_has_an_option(axis):
    assert names.option_at(("body", "axes", axis, 0)) is not None


def test_explanation_is_a_table_with_notes(edits, served):
    result = edits("explain", "photo.png", "x", *LORA, "--size", "64x96")
    assert "image 0" in done(result)
    assert "note: " in result.stderr
    assert served.application.editors.tasks == []
    explained = json.loads(done(edits("explain", "photo.png", "x", *LORA, "--size", "64x96", "--json")))
    assert explained["effective"][0]["height"] == 96


@pytest.fixture
def keyed(folder: Path, tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[tuple[str, str]]:
    """The URL of an application that needs a key, and a key."""
    home = tmp_path_factory.mktemp("keyed")
    key, hashed = new_key()
    (home / "keys.yaml").write_text(yaml.safe_dump({"tenants": {"acme": [hashed]}}))
    shutil.copy(migrated_sqlite, home / "jobs.sqlite3")
    config = config_in(home, f"{SQLITE_PREFIX}{home}/jobs.sqlite3")
    auth = AuthConfig(keys_file=str(home / "keys.yaml"))
    with serving(Application(config.model_copy(update={"auth": auth}))) as served:
        yield served.url, key


def test_login_is_used_for_its_own_service_only(keyed, served):
    url, key = keyed
    refused = invoke("login", url, "--api-key", "edits_wrong")
    assert (refused.exit_code, settings_file().exists()) == (context.REFUSED, False)
    assert "UNAUTHORIZED" in refused.stderr
    # The key is asked for, and not shown.
    logged_in = invoke("login", f"{url}/", input=f"{key}\n")
    assert logged_in.exit_code == 0, logged_in.output
    assert key not in logged_in.output
    assert stat.S_IMODE(settings_file().stat().st_mode) == 0o600
    assert "qwen_image_edit" in done(invoke("models"))
    done(invoke("edit", "photo.png", "x", *LORA, *FAST))
    assert "succeeded" in done(invoke("ls"))
    assert "1/1" in done(invoke("ls", "--status", "succeeded", "-n", "1"))
    assert "acme" in done(invoke("usage"))
    assert json.loads(done(invoke("ls", "--json")))[0]["model"] == "qwen_image_edit"
    assert json.loads(done(invoke("usage", "--json")))[0]["tenant"] == "acme"
    assert sent_to_another_url() is None


def sent_to_another_url() -> str | None:
    """The key that the command sends to a service other than that of the login."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_error(418)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        invoke("--url", f"http://127.0.0.1:{server.server_port}", "models")
        thread.join()
    [key] = seen
    return key


def test_damaged_login_is_ignored(edits):
    settings_file().parent.mkdir(parents=True)
    settings_file().write_text("{")
    result = edits("models")
    assert "qwen_image_edit" in done(result)
    assert "run edits login again" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    said = done(invoke(command, "--help"))
    [example] = re.findall(r"\n  Example:\n    edits (.*)\n", said)
    assert command in example


def test_every_command_is_in_the_help():
    said = done(invoke("--help"))
    assert all(f"\n  {command} " in said for command in COMMANDS)
    assert done(invoke("--version")).startswith("edits ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_shells(shell):
    environment = {"_EDITS_COMPLETE": f"complete_{shell}", "COMP_WORDS": "edits sta", "COMP_CWORD": "1"}
    environment |= {"_TYPER_COMPLETE_ARGS": "edits sta", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    said = invoke(env=environment)
    assert "status" in said.stdout
    assert "models" not in said.stdout


def test_view_shows_queue_bars_and_preview(edits, served, folder, monkeypatch):
    """What a terminal shows; the real one is in docs/how-to/clients.md."""
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, color_system="truecolor", width=100)
    monkeypatch.setattr(progress, "err", console)
    done(edits("edit", "photo.png", "x", "--preset", "house", "--seed", "1", "--seed", "2"))
    assert "request " in terminal.getvalue()
    # The bars of both images.
    assert "image 0" in terminal.getvalue()
    assert "image 1" in terminal.getvalue()


def test_preview_is_drawn_as_text():
    jpeg = io.BytesIO()
    picture = PIL.Image.new("RGB", (64, 64), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 64, 32))
    picture.save(jpeg, "JPEG", quality=100)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100)
    with console.capture() as shown:
        console.print(progress.half_blocks(jpeg.getvalue()))
    lines = shown.get().splitlines()
    assert [line.count("▀") for line in lines[:16]] == [32] * 16
    # The upper half is red, the lower one blue, as nearly as a JPEG tells them.
    assert ";2;254;0;0" in lines[0]
    assert ";2;0;0;254" in lines[15]
