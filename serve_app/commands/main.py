"""The command line of `edits-server`.

Each sub-command imports in its own function what only it needs: `--help` must not wait seconds for torch and Ray.
"""

import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from serve_app.commands import keys
from serve_app.errors import ServiceError
from serve_app.models.registry import MODELS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(keys.app, name="keys", help="Makes, lists, rotates and revokes API keys.")

# Importing diffusers imports torchao, and both log warnings about formats that this service does not use.
WARN_ON_IMPORT = ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def check_model(model: str | None) -> str | None:
    """The `--model` of a command line, unchanged. Raises BadParameter for an unknown one."""
    if model is not None and model not in MODELS:
        raise typer.BadParameter(f"there is no model {model!r}; choose one of {', '.join(MODELS)}")
    return model


@app.callback()
def edits_server() -> None:
    """Serves image-editing LoRAs."""
    for name in WARN_ON_IMPORT:
        logging.getLogger(name).setLevel(logging.ERROR)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A Serve config file, such as serve_config.yaml.")],
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster to join. Without it the command starts one of its own."),
    ] = None,
) -> None:
    """Runs the service in the foreground until SIGTERM or SIGINT, which let running edits finish.

    A second signal stops it at once.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("serve_app").setLevel(logging.INFO)
    if address in (None, "local"):
        # Ray reads this when it is imported: a cluster of one machine, whose processes then listen on loopback alone.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from serve_app.commands.run import run_service

    try:
        run_service(config, address)
    except ServiceError as error:
        typer.echo(f"edits-server: {error.message}", err=True)
        raise typer.Exit(1) from error


@app.command()
def verify(
    checkpoint: Annotated[str, typer.Argument(help="A folder in diffusers' layout, a hub id, or `miniature`.")],
    model: Annotated[
        str | None,
        typer.Option(
            callback=check_model, help="The id of the model; the default is what the checkpoint's configs say."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of a hub id.")] = None,
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help="Never ask the hub.")] = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; the default is all cores.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Width and height of the edit in pixels, at least 64.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the edit.")] = 4,
) -> None:
    """Checks that a checkpoint is what its model's recipe assumes, and that this machine can edit with it.

    Compares the checkpoint's configs with the recipe, then makes one fixed edit twice. Exit code 0 if every check
    passes, 1 otherwise.
    """
    from serve_app.commands.verify import verify_checkpoint
    from serve_app.config import ModelConfig

    try:
        config = ModelConfig(
            id=model or "qwen_image_edit",
            checkpoint=checkpoint,
            device=device,
            threads=threads,
            revision=revision,
            local_files_only=local_files_only,
        )
        passed = verify_checkpoint(config, model, size, steps)
    except (ServiceError, ValueError, RuntimeError) as error:
        # RuntimeError: no such device, or not enough memory on it.
        typer.echo(f"BAD  {error}")
        passed = False
    raise typer.Exit(0 if passed else 1)


@app.command()
def calibrate(
    config: Annotated[Path, typer.Argument(help="A Serve config file, such as serve_config.yaml.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts with control images: a YAML list, or .jsonl, with the fields of a request's prompt."
        ),
    ] = None,
    training_job: Annotated[
        str | None, typer.Option(help="A training job below the LoRA root, whose samples are used instead.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The id of the model; the default is the one that has tiers.")
    ] = None,
    tier: Annotated[list[str] | None, typer.Option(help="A tier to measure; the default is all of the model.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA to measure with, named as in requests, with :STRENGTH behind it unless that is 1."),
    ] = None,
    together: Annotated[bool, typer.Option(help="All LoRAs are one set. By default each is measured alone.")] = False,
    base: Annotated[bool, typer.Option(help="Measure without LoRAs, too.")] = True,
) -> None:
    """Measures how far each tier is from exact, on your own prompts, and stores it where the service looks it up.

    Makes every image on this machine, in exact and in each tier, without LoRAs and with each of those that are named.
    """
    from serve_app.commands.calibrate import calibrate as measure
    from serve_app.commands.calibration_options import read_loras, wanted_of
    from serve_app.commands.config_file import read_config_file
    from serve_app.commands.signals import take_sigterm_as_ctrl_c

    take_sigterm_as_ctrl_c()
    try:
        loras = read_loras(lora or ())
        sets = [loras] if together else [[each] for each in loras]
        read = read_config_file(config).config
        measure(read, wanted_of(read, model, tier or (), [[], *sets] if base else sets, prompts, training_job))
    except KeyboardInterrupt as error:
        typer.echo("edits-server: interrupted; what was measured is stored, for each finished tier and set", err=True)
        raise typer.Exit(130) from error
    except (ServiceError, RuntimeError) as error:
        # RuntimeError: no such device, or not enough memory on it.
        typer.echo(f"edits-server: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def compare(a: Path, b: Path) -> None:
    """Says whether two images are equal, and which of their parameters differ if not.

    Exit code as of `cmp`: 0 if every pixel is equal, 1 if not, 2 if the images cannot be compared.
    """
    from serve_app.commands.compare import compare_files

    raise typer.Exit(compare_files(a, b))


@app.command()
def demo(
    model: Annotated[str, typer.Option(callback=check_model, help="The id of the model to show.")] = "qwen_image_edit",
) -> None:
    """Starts the service on a free port, makes an edit without and with a LoRA, shows both images, and stops.

    Run it in the project's folder. Everything that it writes goes to `out/`.
    """
    from serve_app.commands.demo import show_demo

    show_demo(MODELS[model])
