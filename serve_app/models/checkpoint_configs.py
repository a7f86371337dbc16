"""The JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from serve_app.errors import CheckpointRefused


def read_config(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointRefused, which names the file."""
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointRefused(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointRefused(f"{file} does not hold a JSON object")
    return config
