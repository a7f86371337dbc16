"""What every command shares: the client, and how errors end a command."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edits_client._sync.client import Client
from edits_client.cli.names import error_text
from edits_client.cli.settings import Settings
from edits_client.errors import ApiError, ConnectionFailed, EditFailed, EditsError, Unauthorized, WaitTimeout
from edits_client.retries import Retries

# The exit codes, by what went wrong. 2 is a wrong use of the command, 130 an interruption.
REFUSED, UNREACHABLE, FAILED, LATE, INTERRUPTED = 1, 3, 4, 5, 130

# Who waits at a terminal wants to know sooner than a program that nobody is there.
RETRIES = Retries(for_s=30.0)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
RequestId = Annotated[str, typer.Argument(help="The id of a request, as `edits submit` prints it.")]

# Text for people goes to the terminal's error stream, so that the output is only what a script wants.
err = Console(stderr=True, highlight=False)
# Without a terminal, lines are as long as they are.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 100_000)


@contextmanager
def client_of(context: typer.Context) -> Iterator[Client]:
    """The client for a command. Errors of the service end the command with their exit code."""
    settings: Settings = context.obj
    as_json = context.params.get("json", False)
    with ending_on_errors(as_json=as_json), Client(settings.url, settings.api_key, retries=RETRIES) as client:
        yield client


@contextmanager
def ending_on_errors(*, as_json: bool = False) -> Iterator[None]:
    """End the command with an exit code for an error: what is wrong is said on the error stream."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (EditsError, OSError, ValueError) as error:
        if as_json:
            err.out(json.dumps({"error": facts_of(error)}), highlight=False)
        else:
            text = error_text(error) if isinstance(error, ApiError) else reason_of(error)
            say(f"[bold red]error:[/] {plain(text)}")
        if hint := hint_for(error):
            say(hint)
        raise typer.Exit(exit_code_of(error)) from error


def reason_of(error: Exception) -> str:
    """What an error says, without the number of a system's error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def exit_code_of(error: Exception) -> int:
    """The exit code for an error."""
    if isinstance(error, WaitTimeout):
        return LATE
    if isinstance(error, ConnectionFailed):
        return UNREACHABLE
    if isinstance(error, ApiError) and (error.job_id or isinstance(error, EditFailed)):
        return FAILED
    return REFUSED


def hint_for(error: Exception) -> str | None:
    """What the user can do about an error, apart from what it says."""
    if isinstance(error, WaitTimeout):
        return f"It goes on. To follow it: edits watch {error.job_id}"
    if isinstance(error, ConnectionFailed):
        return "The address is that of --url, of EDITS_URL, or of `edits login URL`, in this order."
    if isinstance(error, Unauthorized):
        return "The key is that of --api-key, of EDITS_API_KEY, or of `edits login`, in this order."
    return None


def facts_of(error: Exception) -> dict[str, Any]:
    """An error as JSON values."""
    if isinstance(error, ApiError):
        return {"code": error.code, "message": error.message, "details": error.details, "request_id": error.job_id}
    return {"code": type(error).__name__, "message": reason_of(error), "details": {}, "request_id": None}


class SaysRetries(logging.Handler):
    """Shows what the client logs, which is that a call failed and is made again."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"[yellow]{plain(record.getMessage())}[/]")


def say(text: str = "") -> None:
    """Text for people, in lines that only the terminal wraps, so that they can be copied."""
    err.print(text, soft_wrap=True)


def print_line(text: str) -> None:
    """A line of the output."""
    out.print(text, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON value on the output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def as_json(value: Any) -> Any:
    """An answer of the service, or a list of them, as JSON values."""
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value.model_dump(mode="json", by_alias=True)


def values_table(title: str, values: dict[str, Any]) -> Table:
    """Names and values, nested ones with their path."""
    table = Table("value", "is", title=title, title_justify="left")
    for name, value in flat(values):
        table.add_row(plain(name), plain(value))
    return table


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Every leaf of nested values that is set, with its path."""
    if value is None or value in ("", [], {}):
        return []
    if isinstance(value, dict):
        return [row for name, item in value.items() for row in flat(item, f"{path}.{name}" if path else str(name))]
    if isinstance(value, list) and isinstance(value[0], (dict, list)):
        return [row for number, item in enumerate(value) for row in flat(item, f"{path}[{number}]")]
    if isinstance(value, list):
        return [(path, ", ".join(map(str, value)))]
    if isinstance(value, bool):
        return [(path, "yes" if value else "no")]
    return [(path, str(value))]


def plain(text: str) -> str:
    """Text that rich shows as it is, and that controls no terminal."""
    return escape("".join(character if character.isprintable() or character == "\n" else "?" for character in text))
