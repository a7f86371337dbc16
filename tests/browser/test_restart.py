"""A service that stops and starts again while the page follows a request."""

from playwright.sync_api import Page, expect

from tests.browser.editing import held_edit
from tests.browser.painting import PaintingEditors
from tests.browser.visit import Visit
from tests.unit.conftest import Application
from tests.unit.serving import Served, serving

# What a broken connection says in the console.
BROKEN = "Failed to load resource: net::|status of 50"


def test_requests_are_followed_over_a_restart_of_the_service(served: Served, visit: Visit, page: Page) -> None:
    visit.expect(BROKEN)
    held_edit(served, page)
    served.server.should_exit = True
    expect(page.locator("job-progress .hint")).to_contain_text("This page keeps trying.")
    port = int(served.url.rpartition(":")[2])
    with serving(Application(served.application.config, PaintingEditors), port=port):
        expect(page.locator("compare-images")).to_be_visible()
