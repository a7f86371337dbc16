"""Chromium, and the application that its pages call: with stand-in editors, behind a real HTTP server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve_app.config import AppConfig
from tests.browser.painting import PaintingEditors
from tests.browser.visit import PATIENCE_MS, Visit, visiting
from tests.programs import chromium

# Fixtures, which pytest finds in this module.
from tests.unit.conftest import (  # noqa: F401
    Application,
    config,
    database_kind,
    database_url,
    forget_applications,
    migrated_sqlite,
)
from tests.unit.serving import Served, serving

# A container has no user namespaces for Chromium's sandbox, and a small /dev/shm. These pages are our own.
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="package")
def browser(migrated_sqlite: Path) -> Iterator[Browser]:  # noqa: F811
    """One browser for the tests of this folder.

    As long as it runs, Playwright has a running event loop in this thread, so that other tests could start none: the
    migrated database, which needs one, comes first, and the browser ends with the folder.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def served(config: AppConfig) -> Iterator[Served]:  # noqa: F811
    """The application on loopback, as the shipped config has it."""
    application = Application(config.model_copy(update={"history_without_keys": True}), PaintingEditors)
    with serving(application) as served:
        yield served


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Visit]:
    with visiting(browser, served.url) as visit:
        yield visit


@pytest.fixture
def page(visit: Visit) -> Page:
    """The page, loaded."""
    return visit.open()
