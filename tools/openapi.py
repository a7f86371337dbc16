"""Prints the OpenAPI document of the service, without starting it: `python -m tools.openapi > openapi.json`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.api.app import create_app
from serve_app.config import AppConfig
from serve_app.intake.service import Service

REPOSITORY = Path(__file__).resolve().parents[1]


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document of an application with the default config, which is built and not started.

    It is the same for every config.
    """

    async def no_editors() -> Mapping[str, int]:
        return {}

    config = AppConfig().resolved(REPOSITORY)
    # Editors are called by a service that is started; this one only describes itself.
    service = Service(config, editors=None, editor_count=no_editors)  # type: ignore[arg-type]
    return create_app(service).openapi()


def main() -> None:
    json.dump(openapi_document(), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
