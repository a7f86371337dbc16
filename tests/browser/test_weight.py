"""The page is light: what a browser loads before a view shows its data."""

import pytest
from playwright.sync_api import Browser

from benchmarks.playground import VIEWS, load
from tests.browser.finished import finished_edit
from tests.unit.serving import Served

MAX_BYTES = 150_000


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_loads_less_than_150_kb(browser: Browser, served: Served, view: str) -> None:
    finished_edit(served.url)
    measured = load(browser, served.url, view)
    assert 10_000 < measured.page_bytes < MAX_BYTES
    assert 0 < measured.first_paint_ms <= measured.complete_ms
