"""`edits edit`, `edits submit` and `edits explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from edits_client._sync.job import Job
from edits_client.bodies import Lora, Options
from edits_client.cli import options as opt
from edits_client.cli.context import AsJson, as_json, client_of, err, out, plain, print_json
from edits_client.cli.progress import watch
from edits_client.cli.sheet import save_sheet
from edits_client.images import Image

Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write. Default: NAME-edit.png.")]
Multipliers = Annotated[
    str | None, typer.Option("--multiplier", help="Strengths of the first LoRA, such as 0,0.5,1: an image each.")
]
Sheet = Annotated[Path | None, typer.Option("--sheet", help="Write a labeled contact sheet of all images here.")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the request's id and do not wait.")]


def add_commands(app: typer.Typer) -> None:
    app.command()(edit)
    app.command()(submit)
    app.command()(explain)


def edit(
    context: typer.Context,
    image: opt.Images,
    prompt: opt.Prompt,
    more_images: opt.MoreImages = None,
    loras: opt.Loras = None,
    multiplier: Multipliers = None,
    output: Output = None,
    sheet: Sheet = None,
    model: opt.Model = None,
    preset: opt.Preset = None,
    size: opt.SizeText = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    negative: opt.Negative = None,
    seeds: opt.Seeds = None,
    trigger: opt.Trigger = None,
    profile: opt.ProfileName = None,
    quality: opt.QualityName = None,
    output_format: opt.Format = None,
    priority: opt.PriorityName = None,
    detach: Detach = False,
    json: AsJson = False,
) -> None:
    """Edit an image, show the progress, and write the result.

    Example: edits edit photo.jpg "make it night" --lora my_job/my_job.safetensors:0.8 -o night.png

    Ctrl-C asks whether to cancel the request.
    """
    output_format = opt.format_of(output, output_format)
    given = opt.options_of(locals())
    variants = strengths(given, multiplier)
    with client_of(context) as client:
        images = [image, *(more_images or [])]
        jobs = [(label, client.submit(images, prompt, **variant)) for label, variant in variants]
        if detach:
            print_ids([job for _, job in jobs], json)
            return
        finished = [(label, item) for label, job in jobs for item in finished_images(job)]
    paths = write_all([item for _, item in finished], output or default_output(image, output_format))
    if sheet is not None:
        labels = [f"{label} seed {item.seed}".strip() for label, item in finished]
        save_sheet(sheet, [item.pil() for _, item in finished], labels)
    report(finished, paths, sheet, json)


def submit(
    context: typer.Context,
    image: opt.Images,
    prompt: opt.Prompt,
    more_images: opt.MoreImages = None,
    loras: opt.Loras = None,
    model: opt.Model = None,
    preset: opt.Preset = None,
    size: opt.SizeText = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    negative: opt.Negative = None,
    seeds: opt.Seeds = None,
    trigger: opt.Trigger = None,
    profile: opt.ProfileName = None,
    quality: opt.QualityName = None,
    output_format: opt.Format = None,
    priority: opt.PriorityName = None,
    json: AsJson = False,
) -> None:
    """Send a request and print its id.

    Example: edits submit photo.jpg "make it night" --preset house --seed 1 --seed 2
    """
    given = opt.options_of({**locals(), "output_format": output_format or "png"})
    with client_of(context) as client:
        print_ids([client.submit([image, *(more_images or [])], prompt, **given)], json)


def explain(
    context: typer.Context,
    image: opt.Images,
    prompt: opt.Prompt,
    more_images: opt.MoreImages = None,
    loras: opt.Loras = None,
    model: opt.Model = None,
    preset: opt.Preset = None,
    size: opt.SizeText = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    negative: opt.Negative = None,
    seeds: opt.Seeds = None,
    trigger: opt.Trigger = None,
    profile: opt.ProfileName = None,
    quality: opt.QualityName = None,
    output_format: opt.Format = None,
    json: AsJson = False,
) -> None:
    """Show what an edit would do, without making it: every effective value, and what may surprise you.

    Example: edits explain photo.jpg "make it night" --lora my_job/my_job.safetensors
    """
    given = opt.options_of({**locals(), "priority": None, "output_format": output_format or "png"})
    with client_of(context) as client:
        explanation = as_json(client.explain([image, *(more_images or [])], prompt, **given))
    if json:
        print_json(explanation)
        return
    for number, effective in enumerate(explanation["effective"]):
        out.print(values_table(f"image {number}", effective))
    for note in explanation["notes"]:
        err.print(f"note: {plain(note)}")
    for name in explanation["ignored"]:
        err.print(f"ignored: {plain(name)}")


def strengths(given: Options, multiplier: str | None) -> list[tuple[str, Options]]:
    """The requests to send, each with its label: one, or one per strength of the first LoRA."""
    if multiplier is None:
        return [("", given)]
    loras = [lora for lora in given.get("loras") or () if isinstance(lora, Lora)]
    if not loras:
        raise typer.BadParameter("--multiplier sets the strength of the first --lora; name one")
    try:
        values = [float(text) for text in multiplier.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--multiplier {multiplier}: numbers with commas between, such as 0,0.5,1") from error
    variants = []
    for value in values:
        variant = given.copy()
        variant["loras"] = [replace(loras[0], multiplier=value).checked(), *loras[1:]]
        variants.append((f"x{value:g}", variant))
    return variants


def finished_images(job: Job) -> list[Image]:
    """Follow a request to its end, and get its images."""
    watch(job)
    return job.result(timeout=60)


def default_output(image: str, output_format: str) -> Path:
    """Where the result goes unless the caller says: next to nothing, in the current folder, under a free name."""
    stem = Path(image.partition("?")[0]).stem or "image"
    suffix = {"jpeg": ".jpg"}.get(output_format, f".{output_format}")
    path, number = Path(f"{stem}-edit{suffix}"), 1
    while path.exists():
        number += 1
        path = Path(f"{stem}-edit-{number}{suffix}")
    return path


def write_all(images: Sequence[Image], path: Path) -> list[Path]:
    """Write the images: one to `path`, several to names with a number before the suffix."""
    if len(images) == 1:
        return [images[0].save(path)]
    return [image.save(path.with_stem(f"{path.stem}-{number}")) for number, image in enumerate(images)]


def report(finished: Sequence[tuple[str, Image]], paths: Sequence[Path], sheet: Path | None, json: bool) -> None:
    """Print what was written, and the service's notes."""
    if json:
        images = [image_json(label, image, path) for (label, image), path in zip(finished, paths, strict=False)]
        print_json({"images": images, "sheet": None if sheet is None else str(sheet)})
        return
    for (label, image), path in zip(finished, paths, strict=False):
        facts = f"{image.width}x{image.height}, seed {image.seed}, {image.gpu_seconds:.2f} GPU s"
        out.print(f"{plain(str(path))}  {f'{label}, ' if label else ''}{facts}, request {image.request_id}")
    if sheet is not None:
        out.print(plain(str(sheet)))
    for note in dict.fromkeys(note for _, image in finished for note in image.notes):
        err.print(f"note: {plain(note)}")


def image_json(label: str, image: Image, path: Path) -> dict[str, Any]:
    return {
        "path": str(path),
        "label": label,
        "request_id": image.request_id,
        "index": image.index,
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "seed": image.seed,
        "gpu_seconds": image.gpu_seconds,
        "url": image.url,
        "notes": image.notes,
    }


def print_ids(jobs: Sequence[Job], json: bool) -> None:
    """Print the ids of requests, one per line."""
    if json:
        print_json([{"request_id": job.id} for job in jobs])
        return
    for job in jobs:
        typer.echo(job.id)


def values_table(title: str, values: dict[str, Any]) -> Table:
    """Names and values, nested ones with their path."""
    table = Table("value", "is", title=title, title_justify="left")
    for name, value in flat(values):
        table.add_row(plain(name), plain(value))
    return table


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Every leaf of nested values, with its path."""
    if isinstance(value, dict) and value:
        return [row for name, item in value.items() for row in flat(item, f"{path}.{name}" if path else str(name))]
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return [row for number, item in enumerate(value) for row in flat(item, f"{path}[{number}]")]
    return [(path, str(value))]
