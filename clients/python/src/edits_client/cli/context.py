"""What every command shares: the client, and how errors end a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from edits_client._sync.client import Client
from edits_client.cli.settings import Settings
from edits_client.errors import ApiError, ConnectionFailed, EditFailed, WaitTimeout

# The exit codes, by what went wrong. 2 is a wrong use of the command, 130 an interruption.
REFUSED, UNREACHABLE, FAILED, LATE, INTERRUPTED = 1, 3, 4, 5, 130

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
RequestId = Annotated[str, typer.Argument(help="The id of a request, as `edits submit` prints it.")]

# Text for people goes to the terminal's error stream, so that the output is only what a script wants.
err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


@contextmanager
def client_of(context: typer.Context) -> Iterator[Client]:
    """The client for a command. Errors of the service end the command with their exit code."""
    settings: Settings = context.obj
    with ending_on_errors(), Client(settings.url, settings.api_key) as client:
        yield client


@contextmanager
def ending_on_errors() -> Iterator[None]:
    try:
        yield
    except WaitTimeout as error:
        fail(f"{error}; edits watch {error.job_id} continues", LATE)
    except EditFailed as error:
        fail(str(error), FAILED)
    except ApiError as error:
        fail(str(error), FAILED if error.job_id else REFUSED)
    except ConnectionFailed as error:
        fail(str(error), UNREACHABLE)
    except (OSError, ValueError) as error:
        fail(str(error), REFUSED)


def fail(message: str, code: int) -> None:
    """Say what is wrong and end the command."""
    err.print(f"[bold red]error:[/] {plain(message)}")
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    """One JSON value on the output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def as_json(value: Any) -> Any:
    """An answer of the service, or a list of them, as JSON values."""
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value.model_dump(mode="json")


def plain(text: str) -> str:
    """Text that rich shows as it is, and that controls no terminal."""
    return escape("".join(character if character.isprintable() or character == "\n" else "?" for character in text))
