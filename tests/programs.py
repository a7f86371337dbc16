"""Programs that only some tests need, and where they are installed."""

import os
import shutil
import sys
from pathlib import Path

import pytest

JAVASCRIPT = Path(__file__).parent / "javascript"
# An environment within the one that runs the tests.
GENERATORS = Path(sys.prefix) / "generators/bin"


def missing(reason: str) -> None:
    """Skip the test, saying why; CI has every program, so there it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def npm_program(name: str) -> Path:
    """A program of the packages in `tests/javascript`. Skips the test if they are not installed."""
    program = JAVASCRIPT / "node_modules/.bin" / name
    if shutil.which("node") is None or not program.exists():
        missing("the packages of tests/javascript are not installed (`make test` does so, with nodejs and npm)")
    return program


def node() -> str:
    """The program that runs JavaScript. Skips the test if it is not installed."""
    found = shutil.which("node")
    if found is None:
        missing("node is not installed")
    return str(found)


def chromium() -> str:
    """The program of a real browser, if possible without windows. Skips the test if none is installed.

    Chromium draws its own windows for each page that a test opens, even where nobody can see them. That takes half of
    its CPU time.
    """
    found = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if found is None:
        missing("Chromium is not installed (Debian's package `chromium-headless-shell` or `chromium`)")
    return str(found)


def generator(name: str) -> Path:
    """A program of `tests/generators`. Skips the test if it is not installed."""
    program = GENERATORS / name
    if not program.exists():
        missing("the generators of clients are not installed (`make test` does so)")
    return program
