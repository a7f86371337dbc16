"""`edits models`, `presets` and `loras`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from edits_client.cli.context import AsJson, as_json, client_of, out, plain, print_json, values_table

loras_app = typer.Typer(invoke_without_command=True)


def add_commands(app: typer.Typer) -> None:
    app.command()(models)
    app.command()(presets)
    app.add_typer(loras_app, name="loras")


def models(context: typer.Context, json: AsJson = False) -> None:
    """List the models of the service.

    \b
    Example:
      edits models
    """
    with client_of(context) as client:
        served = as_json(client.models())
    if json:
        print_json(served)
        return
    table = Table("model", "edits an image", "steps", "guidance", "quality", "base model")
    for model in served:
        edits = "yes" if model["requires_control_image"] else "no"
        steps, guidance = str(model["default_steps"]), f"{model['default_guidance_scale']:g}"
        qualities = ", ".join(model["qualities"])
        table.add_row(plain(model["id"]), edits, steps, guidance, qualities, plain(model["base_model"]))
    out.print(table)


def presets(context: typer.Context, json: AsJson = False) -> None:
    """List the presets that you may use.

    \b
    Example:
      edits presets
    """
    with client_of(context) as client:
        known = as_json(client.presets())
    if json:
        print_json(known)
        return
    for preset in known:
        out.print(values_table(plain(preset["name"]), preset))


@loras_app.callback()
def loras(
    context: typer.Context,
    search: Annotated[str, typer.Option(help="Only those with this in path, trigger word or kind.")] = "",
    json: AsJson = False,
) -> None:
    """List the LoRAs of the service, with what their files say about themselves.

    \b
    Example:
      edits loras --search my_job
    """
    if context.invoked_subcommand is not None:
        return
    with client_of(context) as client:
        found = as_json(list(client.loras(search)))
    if json:
        print_json(found)
        return
    table = Table("path", "kind", "rank", "trigger word", "step", "fits")
    for lora in found:
        receipt = lora["receipt"] or {}
        ranks = ", ".join(map(str, receipt.get("ranks", ())))
        fits = ", ".join(lora["fits"]) or f"none: {lora['problem']}"
        words = (receipt.get("kind") or "", ranks, receipt.get("trigger_word") or "", str(receipt.get("step") or ""))
        table.add_row(*map(plain, (lora["path"], *words, fits)))
    out.print(table)


@loras_app.command()
def show(
    context: typer.Context, path: Annotated[str, typer.Argument(help="The LoRA's path.")], json: AsJson = False
) -> None:
    """Show everything that one LoRA's file says.

    \b
    Example:
      edits loras show my_job/my_job.safetensors
    """
    with client_of(context) as client:
        lora = as_json(client.lora(path))
    if json:
        print_json(lora)
    else:
        out.print(values_table(plain(path), lora))
