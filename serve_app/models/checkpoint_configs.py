"""The JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import fsspec

from serve_app.errors import CheckpointRefused
from serve_app.storage.os_errors import as_os_errors


def read_config(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointRefused, which names the file."""
    try:
        return parse_config(file.read_bytes(), str(file))
    except OSError as error:
        raise CheckpointRefused(f"{file} cannot be read: {error}") from error


def read_remote_config(url: str) -> dict[str, Any]:
    """The object in a JSON file in a store. Blocks. Raises CheckpointRefused, which names the file."""
    try:
        with as_os_errors():
            filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
            return parse_config(filesystem.cat_file(path), url)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointRefused(f"{url} cannot be read: {error}") from error


def parse_config(data: bytes, file: str) -> dict[str, Any]:
    """The object in the bytes of a JSON file. Raises CheckpointRefused, which names the file."""
    try:
        config = json.loads(data)
    except ValueError as error:
        raise CheckpointRefused(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointRefused(f"{file} does not hold a JSON object")
    return config
