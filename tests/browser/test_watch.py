"""Watching requests: progress, previews, cancelling, reloads."""

from playwright.sync_api import Page, expect

from serve_app.errors import UnusableResult
from tests.browser.editing import MARKUP, fill_in, held_edit, make_the_edit
from tests.browser.visit import Visit
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.serving import Served

pytestmark = SHARES_AN_APPLICATION


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


def test_a_failure_is_said_as_the_service_says_it(served: Served, page: Page) -> None:
    served.application.editors.errors.append(UnusableResult(f"the image is black {MARKUP}"))
    fill_in(page)
    make_the_edit(page)
    expect(page.locator("job-progress .problem")).to_contain_text(f"the image is black {MARKUP}")
    expect(page.locator(".job")).to_contain_text("Failed")


def test_many_requests_leave_connections_for_the_rest_of_the_page(served: Served, page: Page) -> None:
    """A browser has six connections to one host over HTTP/1.1."""
    held_edit(served, page)
    for count in range(2, 9):
        make_the_edit(page)
        expect(page.locator(".job")).to_have_count(count)
    page.get_by_label("Steps", exact=True).fill("3")
    page.get_by_label("Steps", exact=True).blur()
    expect(page.locator(".plan")).to_contain_text("3 steps")
    served.let_go()
    expect(page.locator(".job", has_text="Finished")).to_have_count(8)
