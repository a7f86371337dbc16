"""The command `edits`: its subcommands, and where the service is."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from edits_client.cli import catalogue, making, requests, sweeps, training
from edits_client.cli.context import SaysRetries, client_of, plain, say
from edits_client.cli.settings import Settings, resolve, store
from edits_client.version import VERSION

app = typer.Typer(
    name="edits",
    help="Edit images with LoRAs on an edits service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (making, requests, catalogue, training, sweeps):
    module.add_commands(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edits {VERSION}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(envvar="EDITS_URL", help="The service's address.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="EDITS_API_KEY", help="The API key.")] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Edit images with LoRAs on an edits service.

    The address and key are those of the options, of the environment, or of `edits login`, in this order.
    """
    logging.getLogger("edits_client").handlers = [SaysRetries()]
    context.obj = resolve(url, api_key)


@app.command()
def login(
    context: typer.Context,
    url: Annotated[str | None, typer.Argument(help="The service's address.", show_default=False)] = None,
    api_key: Annotated[
        str, typer.Option(prompt="API key (empty for none)", hide_input=True, help="The key; asked for if left out.")
    ] = "",
) -> None:
    """Store the service's address and your key.

    Later commands use them. Only you can read the file.

    \b
    Example:
      edits login https://edits.example.com
    """
    context.obj = settings = Settings((url or context.obj.url).rstrip("/"), api_key or None)
    with client_of(context) as client:
        served = [model.id for model in client.models()]
    path = store(settings)
    say(plain(f"{settings.url} serves {', '.join(served)}; stored in {path}"))
