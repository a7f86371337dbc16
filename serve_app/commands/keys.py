"""`edits-server keys`: makes, lists, rotates and revokes API keys."""

import getpass
import logging
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from serve_app.errors import KeysRefused

app = typer.Typer(no_args_is_help=True)

File = Annotated[Path, typer.Option("--file", envvar="KEYS_FILE", help="The keys file.")]
KeyId = Annotated[str, typer.Argument(help="The beginning of the key's hash, as `keys list` shows it.")]
SHOWN_ONCE = "The key is shown only now."


def check_scopes(scopes: list[str] | None) -> list[str] | None:
    """The `--scope`s of a command line, unchanged. Raises BadParameter for an unknown one."""
    from serve_app.intake.tenants import Scope

    for scope in scopes or ():
        if scope not in set(Scope):
            raise typer.BadParameter(f"there is no scope {scope!r}; choose of {', '.join(Scope)}")
    return scopes


@app.command()
def new(
    tenant: Annotated[str | None, typer.Argument(help="The tenant that the key belongs to.")] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="Make a key that sees the requests of every tenant instead.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="The keys file to add it to. Without it, the lines are printed.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            callback=check_scopes,
            help="submit, read or operate; may be given several times. The default is all three.",
        ),
    ] = None,
    days: Annotated[float | None, typer.Option(min=0.0, help="The key expires after so many days.")] = None,
) -> None:
    """Makes a key and prints it. It is shown once and stored nowhere."""
    from serve_app.intake.callers.keys_edits import KeysEdit
    from serve_app.intake.callers.keys_file import MAX_TENANT_CHARS
    from serve_app.intake.keys import new_entry

    if operator == (tenant is not None):
        raise typer.BadParameter("name either a TENANT or --operator")
    if tenant is not None and not 0 < len(tenant) <= MAX_TENANT_CHARS:
        raise typer.BadParameter(f"the name of a tenant has 1 to {MAX_TENANT_CHARS} characters")
    if file is None:
        if scope or days is not None:
            raise typer.BadParameter("--scope and --days are written to a keys file: name it with --file")
        typer.echo(new_entry(tenant), nl=False)
        return
    try:
        edit = KeysEdit(file)
        key = edit.add(tenant, list(scope or ()), None if days is None else _in(timedelta(days=days)))
        edit.save()
    except KeysRefused as error:
        raise _failed(error) from error
    _audit("keys.new", tenant or "operators", key)
    typer.echo(f"{key}\n\n{SHOWN_ONCE} {file} has its hash.")


@app.command("list")
def list_keys(file: File) -> None:
    """Lists the keys of a file: tenant, beginning of the hash, scopes, expiry."""
    from serve_app.intake.callers.keys_edits import listed_keys

    try:
        listed = listed_keys(file)
    except KeysRefused as error:
        raise _failed(error) from error
    rows = [("TENANT", "KEY", "SCOPES", "EXPIRES")]
    for each in listed:
        scopes = ",".join(sorted(each.key.scopes))
        rows.append((each.tenant or "(operators)", each.key.id, scopes, _expiry(each.key.expires_at)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def rotate(
    key_id: KeyId,
    file: File,
    grace_hours: Annotated[float, typer.Option(min=0.0, help="How long the old key remains valid (hours).")] = 24.0,
) -> None:
    """Makes a new key with the same scopes and prints it. The old one expires after a grace period."""
    from serve_app.intake.callers.keys_edits import KeysEdit

    end = _in(timedelta(hours=grace_hours))
    try:
        edit = KeysEdit(file)
        key = edit.rotate(key_id, end)
        edit.save()
    except KeysRefused as error:
        raise _failed(error) from error
    _audit("keys.rotate", key_id, key)
    typer.echo(f"{key}\n\n{SHOWN_ONCE} The old one is valid until {end.isoformat(timespec='seconds')} at the latest.")


@app.command()
def revoke(key_id: KeyId, file: File) -> None:
    """Removes a key. The service refuses it within 2 s."""
    from serve_app.intake.callers.keys_edits import KeysEdit

    try:
        edit = KeysEdit(file)
        edit.revoke(key_id)
        edit.save()
    except KeysRefused as error:
        raise _failed(error) from error
    _audit("keys.revoke", key_id)
    typer.echo(f"{file} has the key {key_id} no more.")


def _expiry(end: datetime | None) -> str:
    if end is None:
        return "never"
    time = end.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return f"{time} (expired)" if end <= datetime.now(UTC) else time


def _in(time: timedelta) -> datetime:
    return (datetime.now(UTC) + time).replace(microsecond=0)


def _failed(error: KeysRefused) -> typer.Exit:
    typer.echo(f"edits-server: {error.message}", err=True)
    return typer.Exit(1)


def _audit(action: str, target: str, key: str = "") -> None:
    """Write a line of the audit log to stderr, where it does not get between a script and the key."""
    from serve_app.intake.callers.keys_file import key_id_of
    from serve_app.telemetry import audit

    handler = logging.StreamHandler(sys.stderr)
    audit.logger.addHandler(handler)
    made = {"new_key": key_id_of(key)} if key else {}
    audit.record(action, tenant=None, key="", target=target, outcome="written", user=getpass.getuser(), **made)
    audit.logger.removeHandler(handler)
