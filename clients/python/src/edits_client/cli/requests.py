"""`edits status`, `watch`, `get`, `cancel`, `ls` and `usage`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from edits_client.answers import failure_of
from edits_client.cli import options as opt
from edits_client.cli import saving
from edits_client.cli.context import (
    REFUSED,
    AsJson,
    RequestId,
    as_json,
    client_of,
    out,
    plain,
    print_json,
    print_line,
    say,
)
from edits_client.cli.progress import asking_on_interrupt
from edits_client.cli.progress import watch as follow


def add_commands(app: typer.Typer) -> None:
    for command in (status, watch, get, cancel, usage):
        app.command()(command)
    app.command("ls")(history)


def status(context: typer.Context, request_id: RequestId, json: AsJson = False) -> None:
    """Show where a request stands.

    \b
    Example:
      edits status 0f8fad5bd9cb469fa16570867728950e
    """
    with client_of(context) as client:
        state = as_json(client.job(request_id).status())
    if json:
        print_json(state)
        return
    progress = state["progress"]
    print_line(
        f"{state['status']}: {progress['images_done']} of {progress['images']} images, "
        f"{progress['steps_done']} of {progress['steps']} steps"
    )
    if state["queue_position"] is not None:
        print_line(f"{state['queue_position']} images are ahead of it")
    if state["eta_s"] is not None:
        print_line(f"about {state['eta_s']:.0f} s left")
    if state["error"]:
        print_line(plain(f"{state['error']} ({state['error_code']})"))


def watch(context: typer.Context, request_id: RequestId, timeout: opt.Timeout = None, json: AsJson = False) -> None:
    """Follow a request to its end: queue, steps, preview.

    \b
    Example:
      edits watch 0f8fad5bd9cb469fa16570867728950e

    Ctrl-C asks whether to cancel the request.
    """
    with client_of(context) as client:
        job = client.job(request_id)
        with asking_on_interrupt([job]):
            end = follow(job, timeout)
        if json:
            print_json(as_json(end.result))
        elif end.result.status == "succeeded":
            print_line(f"succeeded; edits get {request_id} writes its images")
        if end.result.status != "succeeded":
            raise failure_of(end.result)


def get(
    context: typer.Context,
    request_id: RequestId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    json: AsJson = False,
) -> None:
    """Write the finished images of a request.

    These may be some images of a request that goes on, or that failed.

    \b
    Example:
      edits get 0f8fad5bd9cb469fa16570867728950e -o night.png
    """
    with client_of(context) as client:
        images = client.job(request_id).images()
        if not images:
            say(f"no image is finished; edits watch {request_id} waits for them")
            raise typer.Exit(REFUSED)
        saving.format_of(output, images[0].format)
        saving.save_all([("", image) for image in images], request_id, output, as_json=json)


def cancel(
    context: typer.Context,
    request_id: RequestId,
    purge: Annotated[bool, typer.Option("--purge", help="Delete its images for good, too.")] = False,
    json: AsJson = False,
) -> None:
    """Cancel a request that has not ended.

    \b
    Example:
      edits cancel 0f8fad5bd9cb469fa16570867728950e
    """
    with client_of(context) as client:
        state = as_json(client.job(request_id).cancel(purge=purge))
    if json:
        print_json(state)
    else:
        print_line(state["status"])


def history(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="in_queue, in_progress, succeeded, failed or canceled.")] = None,
    model: Annotated[str | None, typer.Option(help="Only requests for this model.")] = None,
    lora: Annotated[str | None, typer.Option(help="Only requests with this LoRA.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many requests.")] = 20,
    json: AsJson = False,
) -> None:
    """List requests, newest first.

    \b
    Example:
      edits ls --status failed -n 5
    """
    with client_of(context) as client:
        entries = as_json(list(islice(client.history(status=status, model=model, lora=lora), limit)))
    if json:
        print_json(entries)
        return
    table = Table("request", "created", "status", "images", "model", "GPU s")
    for entry in entries:
        images = f"{entry['images_done']}/{entry['images']}"
        seconds = f"{entry['gpu_seconds']:.1f}"
        table.add_row(
            entry["request_id"], entry["created_at"][:19], entry["status"], images, plain(entry["model"]), seconds
        )
    out.print(table)


def usage(context: typer.Context, json: AsJson = False) -> None:
    """Show the GPU seconds and images of your key.

    \b
    Example:
      edits usage
    """
    with client_of(context) as client:
        rows = as_json(client.usage())
    if json:
        print_json(rows)
        return
    table = Table("tenant", "images", "GPU s")
    for row in rows:
        table.add_row(plain(row["tenant"] or "-"), str(row["images"]), f"{row['gpu_seconds']:.1f}")
    out.print(table)
