"""`edits-server demo`: starts the service, makes an edit without and with a LoRA, shows both images, stops."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import httpx
import PIL.Image
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from serve_app.commands.ports import LOOPBACK, free_port
from serve_app.config import AppConfig, ModelConfig, strict_yaml
from serve_app.models.registry import ModelSpec

if TYPE_CHECKING:
    from edits_client import Client, Job

OUT = Path("out")
PHOTOGRAPH = Path("samples/astronaut.jpg")
START_TIMEOUT_S = 180
EDIT_TIMEOUT_S = 600
# An instruction that the miniature was trained on (serve_app/pipeline/miniature_files/README.md), and one of its LoRAs.
PROMPT = "[trigger] invert the colours"
TRIGGER, LORA = "sks", "my_lora_job/my_lora.safetensors"
# Fewer than a request's default of 25, and without guidance: the miniature's image is as good.
STEPS, GUIDANCE = 8, 1.0
STOP_TIMEOUT_S = 30
# The keys of serve_config.yaml that the demo ignores.
LEFT_OUT = ("auth", "webhooks", "base_url", "allowed_hosts")

console = Console()


def show_demo(model: ModelSpec) -> None:
    """Run the demo in the project's folder, which must be the current one. Raises SystemExit(1) if it fails."""
    started = time.monotonic()
    package = client_package()
    OUT.mkdir(exist_ok=True)
    port = free_port()
    config = write_config(port, model)
    url = f"http://{LOOPBACK}:{port}"
    with service(config) as process:
        wait_until_ready(url, process)
        made = edits(package, url, model)
    images = [PIL.Image.open(PHOTOGRAPH)] if model.requires_control_image else []
    side_by_side([*images, *(edited for edited, _ in made)]).save(OUT / "demo.png")
    shows = "the photograph, the edit, and the edit with the LoRA" if images else "the result without and with the LoRA"
    console.print(f"\n[bold]{OUT / 'demo.png'}[/bold]: {shows}")
    spent = " and ".join(f"{seconds:.1f}" for _, seconds in made)
    console.print(f"made in {spent} s; the whole demo took {time.monotonic() - started:.0f} s")
    console.print(
        "[dim]The shipped miniature knows eleven instructions (serve_app/pipeline/miniature_files/README.md),\n"
        "guesses what other words mean, and makes no image from text alone."
        f" With `checkpoint: {model.base_model}` in serve_config.yaml\nand a GPU, the edits are the real model's.[/dim]"
    )


def write_config(port: int, model: ModelSpec) -> Path:
    """A copy of serve_config.yaml for `port` and one model: paths absolute, data in `out/`, which starts empty.

    The copy has no API keys, webhooks and public names, which the demo does not need, and no secrets.
    """
    config: dict[str, Any] = strict_yaml.load(Path("serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    [application] = config["applications"]
    used = {key: value for key, value in application["args"].items() if key not in LEFT_OUT}
    args = AppConfig.model_validate(used).resolved(Path.cwd())
    data = (OUT / "data").absolute()
    shutil.rmtree(data, ignore_errors=True)
    jobs = args.jobs.model_copy(update={"database_url": f"sqlite+aiosqlite:///{data}/jobs.sqlite3"})
    configured = {served.id: served for served in args.models}
    served = configured.get(model.id, ModelConfig(id=model.id, device=args.models[0].device))
    names = ("Ingress", f"Editor-{model.id}")
    application["deployments"] = [each for each in application["deployments"] if each["name"] in names]
    args = args.model_copy(update={"models": (served,), "jobs": jobs, "artifacts_url": f"{data}/artifacts"})
    application["args"] = args.model_dump(mode="json", exclude=set(LEFT_OUT))
    if "://" in args.lora_root:
        # As the file has it: the values of its variables may be secret.
        application["args"]["lora_root"] = used["lora_root"]
    target = OUT / "serve_config.yaml"
    write_private(target, yaml.safe_dump(config))
    return target


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user can read. An earlier file is replaced, not reused with its permissions."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)


@contextmanager
def service(config: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`edits-server run` with its own Ray cluster, for the time of the block. Its log goes to `out/serve.log`."""
    command = [sys.executable, "-m", "serve_app.commands", "run", "--address", "local", str(config)]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    console.print(f"starting the service: [bold]edits-server run {config}[/bold] (log: {OUT / 'serve.log'})")
    with (OUT / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield process
    except ServiceFailed as failure:
        console.print(f"[red]{failure}[/red]; the end of {OUT / 'serve.log'}:")
        console.print("\n".join((OUT / "serve.log").read_text(errors="replace").splitlines()[-15:]), markup=False)
        sys.exit(1)
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the service and the Ray cluster that it started."""
    with console.status("stopping the service"):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class ServiceFailed(Exception):
    """The service ended, was not ready in time, or failed an edit."""


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Show what is still starting, until `/ready` answers 200. Raises ServiceFailed."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting Ray")
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServiceFailed(f"edits-server run ended with exit code {process.returncode}")
            try:
                answer = httpx.get(f"{url}/ready", timeout=30)
                if answer.status_code == 200:
                    progress.update(task, description="the service is ready")
                    return
                # The front's own 503 does not list editors.
                waiting = ", ".join(waiting_for(answer.json()))
                progress.update(task, description=f"loading {waiting}" if waiting else "starting Ray and Serve")
            except httpx.TransportError:
                # The front does not listen yet.
                progress.update(task, description="starting the front")
            time.sleep(0.25)
    raise ServiceFailed(f"the service was not ready after {START_TIMEOUT_S} s")


def waiting_for(readiness: Mapping[str, Any]) -> Iterator[str]:
    """The editors that `/ready` waits for, and how much of its checkpoint each has read, if it reports that."""
    for name in readiness.get("waiting_for", ()):
        editor = readiness.get("editors", {}).get(name)
        if editor and editor["bytes"]:
            yield f"{name} ({editor['state']}, {editor['bytes_read'] / 1e9:.1f} of {editor['bytes'] / 1e9:.1f} GB)"
        else:
            yield name


def client_package() -> ModuleType:
    """The Python client, a distribution of its own that a service does not need. Raises SystemExit(1)."""
    try:
        import edits_client
    except ImportError:
        console.print("The demo needs the Python client: pip install ./clients/python")
        sys.exit(1)
    return edits_client


def edits(package: ModuleType, url: str, model: ModelSpec) -> list[tuple[PIL.Image.Image, float]]:
    """The edit without and with the LoRA, and the seconds of inference of each. Raises ServiceFailed."""
    try:
        with package.Client(url) as client:
            return [edit(client, model, multiplier) for multiplier in (0.0, 1.0)]
    except package.EditsError as error:
        raise ServiceFailed(f"the edit has failed: {error}") from error


def edit(client: "Client", model: ModelSpec, multiplier: float) -> tuple[PIL.Image.Image, float]:
    """Request an edit of the photograph, show its steps, and return the image and its seconds of inference."""
    job = client.submit(
        [PHOTOGRAPH] if model.requires_control_image else [],
        PROMPT,
        model=model.id,
        trigger_word=TRIGGER,
        steps=STEPS,
        guidance=GUIDANCE,
        loras=[f"{LORA}:{multiplier}"],
        output_format="png",
    )
    console.print(escape(f"posted {PROMPT!r} with {multiplier} of {LORA}: request {job.id}"))
    watch(job)
    [image] = job.result(EDIT_TIMEOUT_S)
    return image.pil(), job.record().metadata.inference_time or 0.0


def watch(job: "Job") -> None:
    """Show a request's steps until it ends, for at most EDIT_TIMEOUT_S."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("denoising", total=STEPS)
        for event in job.events(previews=False, timeout=EDIT_TIMEOUT_S):
            if step := getattr(event, "step", None):
                progress.update(task, completed=step)


def side_by_side(images: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """All images next to each other, scaled to the height of the last one."""
    height = images[-1].height
    widths = [round(edited.width * height / edited.height) for edited in images]
    sheet = PIL.Image.new("RGB", (sum(widths), height))
    for i, (edited, width) in enumerate(zip(images, widths, strict=True)):
        sheet.paste(edited.convert("RGB").resize((width, height)), (sum(widths[:i]), 0))
    return sheet
