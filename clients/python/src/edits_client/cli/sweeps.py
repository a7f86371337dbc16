"""`edits sweep`, and `sweep-watch`, `sweep-cancel`, `sweep-resume` and `sweep-extend` for one that was started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edits_client import models
from edits_client._sync.sweep import Sweep
from edits_client.cli import options as opt
from edits_client.cli.context import FAILED, INTERRUPTED, AsJson, as_json, client_of, plain, print_json, print_line, say
from edits_client.cli.sweep_view import SweepView

NO_LORA = "none"

Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        "-c",
        help="A LoRA's path, a pattern such as 'my_job/*.safetensors' (in quotes), or none; several are allowed.",
    ),
]
TrainingJobName = Annotated[str | None, typer.Option("--job", help="All checkpoints of a training job.")]
FromStep = Annotated[int | None, typer.Option("--from-step", help="The first step of --job.")]
ToStep = Annotated[int | None, typer.Option("--to-step", help="The last step of --job.")]
Multipliers = Annotated[str | None, typer.Option("--multiplier", help="Strengths, such as 0.5,0.75,1.")]
MorePrompts = Annotated[list[str] | None, typer.Option("--prompt", help="A further prompt; several are allowed.")]
Profiles = Annotated[list[str] | None, typer.Option("--profile", help="A profile; several are allowed.")]
Qualities = Annotated[
    list[str] | None, typer.Option("--quality", help="exact, balanced, fast or turbo; several are allowed.")
]
MaxCells = Annotated[int | None, typer.Option("--max-cells", help="Refuse to make more images than this.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say how many images there would be.")]
SheetFile = Annotated[Path | None, typer.Option("--sheet", help="Write the contact sheet here: .png, .jpg or .webp.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", help="Write the table of all cells here.")]
ArchiveFile = Annotated[Path | None, typer.Option("--archive", help="Write a ZIP of all images here.")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the sweep's id and do not wait.")]
SweepId = Annotated[str, typer.Argument(help="The id of a sweep, as `edits sweep --detach` prints it.")]
Purge = Annotated[bool, typer.Option("--purge", help="Delete its images for good, too.")]


def add_commands(app: typer.Typer) -> None:
    app.command()(sweep)
    app.command("sweep-watch")(watch)
    app.command("sweep-cancel")(cancel)
    app.command("sweep-resume")(resume)
    app.command("sweep-extend")(extend)


def sweep(
    context: typer.Context,
    image: opt.Images,
    prompt: opt.Prompt,
    more_images: opt.MoreImages = None,
    checkpoint: Checkpoints = None,
    job: TrainingJobName = None,
    from_step: FromStep = None,
    to_step: ToStep = None,
    multiplier: Multipliers = None,
    prompts: MorePrompts = None,
    seeds: opt.Seeds = None,
    profile: Profiles = None,
    quality: Qualities = None,
    loras: opt.Loras = None,
    model: opt.Model = None,
    preset: opt.Preset = None,
    size: opt.SizeText = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    negative: opt.Negative = None,
    trigger: opt.Trigger = None,
    max_cells: MaxCells = None,
    dry_run: DryRun = False,
    sheet: SheetFile = None,
    csv: CsvFile = None,
    archive: ArchiveFile = None,
    detach: Detach = False,
    timeout: opt.Timeout = None,
    json: AsJson = False,
) -> None:
    """Make an image for each combination of checkpoints, strengths, prompts and seeds, and compare them on a sheet.

    \b
    Example:
      edits sweep photo.jpg "[trigger] at night" -c none -c 'my_job/*.safetensors' --multiplier 0.6,0.8,1 --sheet s.jpg

    Ctrl-C leaves the sweep running, and says how to follow or cancel it.
    """
    if job is not None and trigger is None and "[trigger]" in prompt + "".join(prompts or []):
        # The job's checkpoints name their trigger word.
        trigger = "auto"
    # Axes of the sweep, and what this command has no option for.
    left_out = ("seeds", "profile", "quality", "min_psnr", "min_ssim", "priority", "output_format")
    given = {**locals(), **dict.fromkeys(left_out)}
    every_prompt = prompts and [prompt, *prompts]
    axes = axes_of(checkpoint, job, (from_step, to_step), multiplier, every_prompt, seeds, profile, quality)
    with client_of(context) as client:
        base = client.body([image, *(more_images or [])], prompt, **opt.options_of(given))
        if dry_run:
            show_plan(client.plan_sweep(base, axes, max_cells=max_cells), as_json=json)
            return
        started = client.sweep(base, axes, max_cells=max_cells)
        if detach:
            print_json({"sweep_id": started.id}) if json else print_line(started.id)
            return
        follow(started, timeout)
        save(started, sheet, csv, archive, as_json_=json)


def axes_of(
    checkpoints: list[str] | None,
    job: str | None,
    steps: tuple[int | None, int | None],
    multipliers: str | None,
    prompts: list[str] | None,
    seeds: list[int] | None,
    profiles: list[str] | None,
    qualities: list[str] | None,
) -> dict[str, Any]:
    """The axes that the options name."""
    values: list[Any] = [None if path == NO_LORA else path for path in checkpoints or []]
    if job is not None:
        named = {"training_job": job, "from_step": steps[0], "to_step": steps[1]}
        values.append({name: value for name, value in named.items() if value is not None})
    axes = {"checkpoints": values, "multipliers": numbers(multipliers), "prompts": prompts, "seeds": seeds}
    return {name: value for name, value in {**axes, "profiles": profiles, "qualities": qualities}.items() if value}


def numbers(text: str | None) -> list[float]:
    """The strengths in a text such as 0.5,1."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise typer.BadParameter(f"--multiplier {text}: numbers from -2 to 2, such as 0.5,0.75,1") from error


def show_plan(plan: models.SweepCreated, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.model_dump(mode="json"))
        return
    time = "" if plan.predicted_gpu_seconds is None else f", about {plan.predicted_gpu_seconds:.0f} GPU s"
    print_line(f"{plan.cells} images{time}; nothing was started")
    for note in plan.notes:
        say(f"note: {plain(note)}")


def follow(sweep: Sweep, timeout: float | None) -> None:
    """Show the sweep until it ends. Ctrl-C leaves it running."""
    try:
        with SweepView(sweep.status()) as view:
            for cell in sweep.changes(timeout):
                view.update(cell)
    except KeyboardInterrupt:
        say(f"the sweep goes on; to follow it: edits sweep-watch {sweep.id}; to end it: edits sweep-cancel {sweep.id}")
        raise typer.Exit(INTERRUPTED) from None


def save(sweep: Sweep, sheet: Path | None, csv: Path | None, archive: Path | None, *, as_json_: bool) -> None:
    """Write what was asked for, and say how the sweep has ended. The exit code tells of cells without an image."""
    files = [*(sweep.save_sheet(sheet) if sheet else [])]
    files += [sweep.save_csv(csv)] if csv else []
    files += [sweep.save_archive(archive)] if archive else []
    end = sweep.status()
    if as_json_:
        print_json({"sweep": as_json(end), "files": [str(file) for file in files]})
    else:
        for file in files:
            print_line(plain(str(file)))
        say(f"sweep {end.sweep_id}: {end.status}, {end.counts.succeeded} of {end.cells} images")
        for cell in end.grid:
            if cell.error:
                say(f"cell {cell.cell}: {plain(cell.error)} ({cell.error_code})")
    if end.status != "succeeded":
        raise typer.Exit(FAILED)


def watch(
    context: typer.Context,
    sweep_id: SweepId,
    sheet: SheetFile = None,
    csv: CsvFile = None,
    archive: ArchiveFile = None,
    timeout: opt.Timeout = None,
    json: AsJson = False,
) -> None:
    """Follow a sweep to its end, and write its sheet, table and archive.

    \b
    Example:
      edits sweep-watch 5a4f6c1e0d7b4c0f9e8d7c6b5a493827 --sheet sheet.jpg --csv cells.csv
    """
    with client_of(context) as client:
        found = client.open_sweep(sweep_id)
        follow(found, timeout)
        save(found, sheet, csv, archive, as_json_=json)


def cancel(context: typer.Context, sweep_id: SweepId, purge: Purge = False, json: AsJson = False) -> None:
    """Cancel a sweep. Finished images stay, unless they are purged.

    \b
    Example:
      edits sweep-cancel 5a4f6c1e0d7b4c0f9e8d7c6b5a493827
    """
    with client_of(context) as client:
        _show(client.open_sweep(sweep_id).cancel(purge=purge), json=json)


def resume(context: typer.Context, sweep_id: SweepId, json: AsJson = False) -> None:
    """Go on with a sweep: make the cells that were cancelled or failed.

    \b
    Example:
      edits sweep-resume 5a4f6c1e0d7b4c0f9e8d7c6b5a493827
    """
    with client_of(context) as client:
        _show(client.open_sweep(sweep_id).resume(), json=json)


def extend(
    context: typer.Context,
    sweep_id: SweepId,
    checkpoint: Checkpoints = None,
    job: TrainingJobName = None,
    from_step: FromStep = None,
    to_step: ToStep = None,
    multiplier: Multipliers = None,
    prompts: MorePrompts = None,
    seeds: opt.Seeds = None,
    profile: Profiles = None,
    quality: Qualities = None,
    max_cells: MaxCells = None,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Add checkpoints, strengths, prompts, seeds, profiles or qualities to a sweep. Only new images are made.

    \b
    Example:
      edits sweep-extend 5a4f6c1e0d7b4c0f9e8d7c6b5a493827 -c 'my_job/*.safetensors'
    """
    axes = axes_of(checkpoint, job, (from_step, to_step), multiplier, prompts, seeds, profile, quality)
    with client_of(context) as client:
        created = client.open_sweep(sweep_id).extend(axes, max_cells=max_cells, dry_run=dry_run)
    if dry_run:
        show_plan(created, as_json=json)
    elif json:
        print_json(as_json(created))
    else:
        print_line(f"{created.cells} images in all; edits sweep-watch {sweep_id} follows it")


def _show(summary: models.SweepSummary, *, json: bool) -> None:
    if json:
        print_json(as_json(summary))
    else:
        print_line(f"{summary.status}: {summary.counts.succeeded} of {summary.cells} images")
