"""`edits training-jobs` and `edits preview`."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Annotated, Any

import PIL.Image
import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from edits_client._sync.client import Client
from edits_client.cli import saving
from edits_client.cli.context import FAILED, AsJson, as_json, client_of, err, out, plain, print_json, print_line, say
from edits_client.cli.sheet import save_sheet
from edits_client.events import ENDS
from edits_client.models import Pair, PreviewsStatus

# How often the status is asked for (s).
POLL_S = 0.5
# How much of a prompt a table shows.
PROMPT_CHARS = 40

JobName = Annotated[str, typer.Argument(help="The training job: its folder below the service's LoRA root.")]


def add_commands(app: typer.Typer) -> None:
    app.command("training-jobs")(training_jobs)
    app.command()(preview)


def training_jobs(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="A job, to show its checkpoints and samples.", show_default=False)
    ] = None,
    search: Annotated[str, typer.Option(help="Only those with this in name or trigger word.")] = "",
    json: AsJson = False,
) -> None:
    """List the training jobs on the service, or show one of them.

    \b
    Example:
      edits training-jobs my_job
    """
    with client_of(context) as client:
        found: Any = list(client.training_jobs(search)) if name is None else client.training_job(name)
    shown = as_json(found)
    if json:
        print_json(shown)
    elif name is None:
        out.print(_jobs_table(shown))
    else:
        _show_job(shown)


def preview(
    context: typer.Context,
    name: JobName,
    step: Annotated[int, typer.Option(min=0, help="The training step; 0 is the model without the LoRA.")],
    samples: Annotated[
        list[int] | None, typer.Option("--sample", help="The number of a sample, once per sample; all by default.")
    ] = None,
    control_images: Annotated[
        list[str] | None,
        typer.Option(
            "--control-image",
            metavar="NAME=IMAGE",
            help="A control image that is not on the service: the trainer's file name, and the file here.",
        ),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write all pairs next to each other to this file.")] = None,
    json: AsJson = False,
) -> None:
    """Make the previews of a checkpoint again, as the trainer made them, and compare.

    The same command again makes nothing again.

    \b
    Example:
      edits preview my_job --step 500 --control-image cat.png=photos/cat.png --sheet pairs.png
    """
    saving.check_paths(None, sheet)
    images = _named_images(control_images or [])
    with client_of(context) as client:
        started = client.start_previews(name, step, samples=samples, control_images=images)
        status = _followed(client, name, started.id)
        if sheet is not None:
            _write_sheet(client, status, sheet.expanduser())
    if json:
        print_json(as_json(status))
    else:
        _show_previews(status, sheet)
    if status.status != "succeeded":
        raise typer.Exit(FAILED)


def _named_images(given: list[str]) -> dict[str, str]:
    images = {}
    for text in given:
        name, equals, image = text.partition("=")
        if not (name and equals and image):
            raise typer.BadParameter(f"{text}: write NAME=IMAGE, such as cat.png=photos/cat.png")
        images[name] = image
    return images


def _followed(client: Client, name: str, previews_id: str) -> PreviewsStatus:
    """The previews once they have ended. Without a terminal, nothing is shown meanwhile."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("previews", total=None)
        while True:
            status = client.previews_status(name, previews_id)
            ended = sum(pair.ours.status in ENDS for pair in status.pairs)
            progress.update(task, total=len(status.pairs), completed=ended)
            if status.status in ENDS:
                return status
            time.sleep(POLL_S)


def _write_sheet(client: Client, status: PreviewsStatus, path: Path) -> None:
    """Write the trainer's images and ours, in pairs."""
    images, labels = [], []
    for pair in status.pairs:
        if pair.theirs is None or pair.ours.url is None:
            continue
        theirs = client.sample_image(status.training_job, pair.theirs.file)
        images += [PIL.Image.open(io.BytesIO(theirs)), client.job(pair.ours.request_id).images()[0].pil()]
        labels += [f"sample {pair.sample}: the trainer's", f"ours: {_closeness(pair)}"]
    if images:
        # Four in a row, so that no pair is torn apart.
        save_sheet(path, images, labels, columns=4)


def _closeness(pair: Pair) -> str:
    """How close a pair is, in a few words."""
    found = pair.comparison
    if found is None:
        return "not compared"
    return "equal" if found.is_equal else f"{found.psnr_db:g} dB, {found.equal_share:.1%} of pixels equal"


def _show_previews(status: PreviewsStatus, sheet: Path | None) -> None:
    table = Table("sample", "status", "ours and the trainer's", "request")
    for pair in status.pairs:
        table.add_row(str(pair.sample), pair.ours.status, _closeness(pair), pair.ours.request_id)
    out.print(table)
    for missing in status.not_redone:
        print_line(plain(f"sample {missing.sample}: {missing.problem}"))
    print_line(plain(status.summary))
    for text in dict.fromkeys(fact.text for pair in status.pairs for fact in pair.facts):
        say(f"note: {plain(text)}")
    for text in dict.fromkeys(pair.problem for pair in status.pairs if pair.problem):
        say(f"note: {plain(text)}")
    if sheet is not None:
        print_line(plain(str(sheet)))


def _jobs_table(jobs: list[dict[str, Any]]) -> Table:
    table = Table("job", "model", "trigger word", "checkpoints", "steps with samples", "problem")
    for job in jobs:
        model = (job["model"] or "none of these") + ("" if job["is_served"] else " (not served)")
        steps = [each["step"] for each in job["checkpoints"]]
        final = ["final"] if job["final"] else []
        words = (job["trigger_word"] or "", _range(steps, final), _range(job["sample_steps"], []), job["problem"] or "")
        table.add_row(*map(plain, (job["name"], model, *words)))
    return table


def _range(steps: list[int], more: list[str]) -> str:
    """Steps in a few words: all of up to four, otherwise the first and the last."""
    texts = [str(step) for step in steps]
    if len(texts) > 4:
        texts = [f"{len(texts)}: {texts[0]} to {texts[-1]}"]
    return ", ".join([*texts, *more])


def _show_job(job: dict[str, Any]) -> None:
    out.print(_jobs_table([job]))
    files = Table("step", "path", "size", "fits")
    for each in [*job["checkpoints"], *([job["final"]] if job["final"] else [])]:
        size = "" if each["size_bytes"] is None else f"{each['size_bytes'] / 2**20:.1f} MiB"
        fits = ", ".join(each["fits"] or []) or f"{each['state']}: {each['problem'] or ''}"
        files.add_row(*map(plain, (str(each["step"] or "final"), each["path"], size, fits)))
    out.print(files)
    samples = Table("sample", "prompt", "size", "seed", "multiplier", "control images", "problem")
    for sample in job["samples"]:
        body = sample["body"] or {"prompts": [{}], "loras": []}
        prompt, loras = body["prompts"][0], body["loras"]
        size = f"{prompt['width']}x{prompt['height']}" if prompt else ""
        strength = f"{loras[0]['network_multiplier']:g}" if loras else ""
        images = ", ".join(each["found"] or f"missing: {each['path']}" for each in sample["control_images"])
        values = (str(sample["sample"]), sample["prompt"][:PROMPT_CHARS], size, str(prompt.get("seed", "")), strength)
        samples.add_row(*map(plain, (*values, images, sample["problem"] or "")))
    out.print(samples)
