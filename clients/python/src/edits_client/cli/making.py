"""`edits edit`, `edits submit` and `edits explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edits_client._sync.job import Job
from edits_client.answers import failure_of
from edits_client.bodies import Lora, Options
from edits_client.cli import options as opt
from edits_client.cli import saving
from edits_client.cli.context import AsJson, as_json, client_of, out, plain, print_json, say, values_table
from edits_client.cli.progress import asking_on_interrupt, watch

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
    min_psnr: opt.MinPsnr = None,
    min_ssim: opt.MinSsim = None,
    output_format: opt.Format = None,
    priority: opt.PriorityName = None,
    detach: Detach = False,
    timeout: opt.Timeout = None,
    json: AsJson = False,
) -> None:
    """Edit an image, show the progress, and write the result.

    \b
    Example:
      edits edit photo.jpg "make it night" --lora my_job/my_job.safetensors:0.8 -o night.png

    Ctrl-C asks whether to cancel the request.
    """
    output_format = saving.format_of(output, output_format)
    saving.check_paths(output, sheet)
    variants = strengths(opt.options_of(locals()), multiplier)
    with client_of(context) as client:
        jobs: list[Job] = []
        with asking_on_interrupt(jobs):
            for _, variant in variants:
                jobs.append(client.submit([image, *(more_images or [])], prompt, **variant))
            if detach:
                print_ids(jobs, json)
                return
            labels = [label for label, _ in variants]
            ends = [watch(job, timeout, label).result for job, label in zip(jobs, labels, strict=True)]
        finished = [
            (label, item) for label, job, end in zip(labels, jobs, ends, strict=True) for item in job.images(end)
        ]
        saving.save_all(finished, image, output, sheet, as_json=json)
        for end in ends:
            if end.status != "succeeded":
                raise failure_of(end)


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
    min_psnr: opt.MinPsnr = None,
    min_ssim: opt.MinSsim = None,
    output_format: opt.Format = None,
    priority: opt.PriorityName = None,
    json: AsJson = False,
) -> None:
    """Send a request and print its id.

    \b
    Example:
      edits submit photo.jpg "make it night" --preset house --seed 1 --seed 2
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
    min_psnr: opt.MinPsnr = None,
    min_ssim: opt.MinSsim = None,
    output_format: opt.Format = None,
    json: AsJson = False,
) -> None:
    """Show what an edit would do, without doing it.

    That is every effective value, and what may surprise you.

    \b
    Example:
      edits explain photo.jpg "make it night" --lora my_job/my_job.safetensors
    """
    given = opt.options_of({**locals(), "priority": None, "output_format": output_format or "png"})
    with client_of(context) as client:
        explanation = as_json(client.explain([image, *(more_images or [])], prompt, **given))
    if json:
        print_json(explanation)
        return
    for number, effective in enumerate(explanation["effective"]):
        # What to send to make the same again is for programs: it is in the JSON.
        shown = {name: value for name, value in effective.items() if name != "request"}
        out.print(values_table(f"image {number}", shown))
    for note in explanation["notes"]:
        say(f"note: {plain(note)}")
    for name in explanation["ignored"]:
        say(f"ignored: {plain(name)}")


def strengths(given: Options, multiplier: str | None) -> list[tuple[str, Options]]:
    """The requests to send, each with its label: one, or one per strength of the first LoRA."""
    if multiplier is None:
        return [("", given)]
    loras = [lora for lora in given.get("loras") or () if isinstance(lora, Lora)]
    if not loras:
        raise typer.BadParameter("--multiplier sets the strength of the first --lora; name one")
    variants = []
    for text in multiplier.split(","):
        variant = given.copy()
        try:
            lora = replace(loras[0], multiplier=float(text)).checked()
        except ValueError as error:
            raise typer.BadParameter(f"--multiplier {multiplier}: numbers from -2 to 2, such as 0,0.5,1") from error
        variant["loras"] = [lora, *loras[1:]]
        variants.append((f"x{lora.multiplier:g}", variant))
    return variants


def print_ids(jobs: Sequence[Job], json: bool) -> None:
    """Print the ids of requests, one per line."""
    if json:
        print_json([{"request_id": job.id} for job in jobs])
        return
    for job in jobs:
        typer.echo(job.id)
