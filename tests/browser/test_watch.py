"""Watching requests: progress, previews, cancelling, reloads, and a service that stops and starts again."""

from playwright.sync_api import Browser, Page, expect

from serve_app.errors import UnusableResult
from tests.browser.editing import MARKUP, fill_in, make_the_edit
from tests.browser.painting import PaintingEditors
from tests.browser.visit import Visit, visiting
from tests.unit.conftest import Application
from tests.unit.serving import Served, serving

# What a broken connection says in the console.
BROKEN = "Failed to load resource: net::|status of 50"


def held_edit(served: Served, page: Page) -> None:
    """An edit that waits after its second step, of which its preview is shown: steps are stored a little later."""
    served.hold_back()
    served.application.editors.hold_after = 2
    fill_in(page)
    make_the_edit(page)
    expect(page.locator(".stage-box .preview")).to_be_visible()
    expect(page.locator("job-progress")).to_contain_text("of 4")


def test_steps_and_previews_are_shown_while_the_image_is_made(served: Served, page: Page) -> None:
    held_edit(served, page)
    preview = page.locator(".stage-box .preview")
    expect(preview).to_be_visible()
    before = preview.get_attribute("src")
    served.application.editors.hold_after = 3
    served.let_go()
    expect(page.locator("compare-images")).to_be_visible()
    assert before.startswith("data:image/jpeg;base64,")


def test_an_edit_is_canceled(served: Served, page: Page) -> None:
    held_edit(served, page)
    page.locator("job-progress").get_by_role("button", name="Cancel").click()
    expect(page.locator("job-progress")).to_contain_text("Canceled")
    served.run(served.application.editors.stopped.wait())
    expect(page.get_by_role("status").first).to_have_text("The request is canceled.")


def test_several_requests_run_at_once_and_say_their_place_in_the_queue(served: Served, page: Page) -> None:
    held_edit(served, page)
    for _ in range(3):
        make_the_edit(page)
    expect(page.locator(".job")).to_have_count(4)
    expect(page.locator(".job", has_text="In the queue, 1 image ahead")).to_have_count(1)
    served.let_go()
    expect(page.locator(".job", has_text="Finished")).to_have_count(4)
    page.get_by_role("button", name="Take off the list").first.click()
    expect(page.locator(".job")).to_have_count(3)


def test_a_reload_resumes(served: Served, visit: Visit, page: Page) -> None:
    held_edit(served, page)
    page = visit.open()
    expect(page.locator("job-progress")).to_contain_text("of 4")
    expect(page.locator(".stage-box .preview")).to_be_visible()
    served.let_go()
    expect(page.locator("compare-images")).to_be_visible()
    # Once more: the input image comes from this browser, the result from the service.
    page = visit.open()
    expect(page.locator("compare-images")).to_be_visible()


def test_requests_are_followed_over_a_restart_of_the_service(browser: Browser, served: Served) -> None:
    config, port = served.application.config, int(served.url.rpartition(":")[2])
    with visiting(browser, served.url) as visit:
        visit.expect(BROKEN)
        page = visit.open()
        held_edit(served, page)
        served.server.should_exit = True
        expect(page.locator("job-progress .hint")).to_contain_text("This page keeps trying.")
        with serving(Application(config, PaintingEditors), port=port):
            expect(page.locator("compare-images")).to_be_visible(timeout=30_000)


def test_a_failure_is_said_as_the_service_says_it(served: Served, page: Page) -> None:
    served.application.editors.errors.append(UnusableResult(f"the image is black {MARKUP}"))
    fill_in(page)
    make_the_edit(page)
    expect(page.locator("job-progress .problem")).to_contain_text(f"the image is black {MARKUP}")
    expect(page.locator(".job")).to_contain_text("Failed")
