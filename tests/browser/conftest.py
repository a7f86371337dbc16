"""Chromium, and the application that its pages call: with stand-in editors, behind a real HTTP server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from serve_app.config import AppConfig
from tests.browser.painting import PaintingEditors
from tests.browser.visit import CHROMIUM_OPTIONS, Visit, visiting
from tests.programs import chromium

# Fixtures, which pytest finds in this module.
from tests.unit.conftest import (  # noqa: F401
    Application,
    config,
    database_kind,
    database_url,
    forget_applications,
    migrated_sqlite,
    shared_config,
)
from tests.unit.serving import Served, serving


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


@contextmanager
def painting(config: AppConfig) -> Iterator[Served]:  # noqa: F811
    """The application on loopback, as the shipped config has it."""
    application = Application(config.model_copy(update={"history_without_keys": True}), PaintingEditors)
    with serving(application) as served:
        yield served


@pytest.fixture(scope="module")
def shared_service(shared_config: AppConfig) -> Iterator[Served]:  # noqa: F811
    with painting(shared_config) as served:
        yield served


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """The application on loopback; in a module marked SHARES_AN_APPLICATION one for all of its tests, which then find
    the requests and files of the tests before them."""
    if request.node.get_closest_marker("shares_an_application") is None:
        with painting(request.getfixturevalue("config")) as served:
            yield served
        return
    served = request.getfixturevalue("shared_service")
    yield served
    served.let_go()
    served.application.editors.forget()


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Visit]:
    with visiting(browser, served.url) as visit:
        yield visit


@pytest.fixture
def page(visit: Visit) -> Page:
    """The page, loaded."""
    return visit.open()
