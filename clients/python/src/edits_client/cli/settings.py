"""Where the service is and which key is sent: options, environment, and what `edits login` has stored."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from edits_client._sync.client import DEFAULT_URL


@dataclass(frozen=True)
class Settings:
    """The service's URL, and the API key for it, if any."""

    url: str = DEFAULT_URL
    api_key: str | None = None


def settings_file() -> Path:
    """The file that `edits login` writes, in the user's config folder."""
    return Path(typer.get_app_dir("edits")) / "login.json"


def stored() -> Settings | None:
    """What `edits login` has stored, None if nothing, or nothing that can be read."""
    try:
        values = json.loads(settings_file().read_text())
        return Settings(str(values["url"]), values["api_key"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        typer.echo(f"{settings_file()} cannot be read and is ignored; run edits login again", err=True)
        return None


def store(settings: Settings) -> Path:
    """Store the settings for later commands. Only the user can read the file."""
    path = settings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(settings), file)
    return path


def resolve(url: str | None, api_key: str | None) -> Settings:
    """The settings of one command: its options, or else what is stored. A stored key goes to its own service only."""
    login = stored()
    url = (url or (login.url if login else DEFAULT_URL)).rstrip("/")
    if api_key is None and login is not None and login.url.rstrip("/") == url:
        api_key = login.api_key
    return Settings(url, api_key)
