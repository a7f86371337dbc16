"""The command line of `edits-server`."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from serve_app.errors import ServiceError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def edits_server() -> None:
    """Serves image-editing LoRAs."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("serve_app").setLevel(logging.INFO)


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
    if address in (None, "local"):
        # Ray reads this when it is imported: a cluster of one machine, whose processes then listen on loopback alone.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Only now, also because it takes seconds, which `--help` need not wait for.
    from serve_app.commands.run import run_service

    try:
        run_service(config, address)
    except ServiceError as error:
        typer.echo(f"edits-server: {error.message}", err=True)
        raise typer.Exit(1) from error
