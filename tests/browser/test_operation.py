"""The view Operation: how the service is doing."""

import httpx2
from playwright.sync_api import expect

from serve_app.errors import OutOfMemory
from tests.browser.finished import body_of, finished_edit
from tests.browser.visit import Visit, serious_findings
from tests.unit.serving import Served, wait_until


def wait_for_state(served: Served, **counts: int) -> None:
    def is_so() -> bool:
        said = httpx2.get(f"{served.url}/v1/operation").json()
        return all(said[name] == count for name, count in counts.items())

    wait_until(is_so, 30)


def test_editors_queue_and_errors_are_shown_as_they_change(served: Served, visit: Visit) -> None:
    finished_edit(served.url)
    visit.page.clock.install()
    page = visit.open("#operation")
    row = page.get_by_role("row", name="qwen_image_edit")
    expect(row.get_by_role("cell").nth(0)).to_have_text("1")
    expect(page.get_by_text("No request of the last day has failed.")).to_be_visible()
    served.hold_back()
    served.application.editors.errors.append(OutOfMemory("this edit does not fit on the device"))
    for _ in range(3):
        httpx2.post(f"{served.url}/v1/inference", json=body_of())
    # One is made and one prepared.
    wait_for_state(served, waiting=1)
    # The page asks again by itself.
    page.clock.fast_forward("00:06")
    expect(page.get_by_text("1 image waits, editors work on 2 images.")).to_be_visible()
    assert serious_findings(page) == []
    served.let_go()
    wait_for_state(served, working=0)
    page.clock.fast_forward("00:06")
    error = page.get_by_role("listitem").filter(has_text="OUT_OF_MEMORY")
    expect(error).to_contain_text("this edit does not fit on the device")
    expect(page.get_by_text("0 images wait, editors work on 0 images.")).to_be_visible()
    error.get_by_role("link").click()
    expect(page.get_by_text("does not fit on the device")).to_be_visible()


def test_links_lead_to_the_documentation(served: Served, visit: Visit) -> None:
    page = visit.open("#operation")
    for name in ("Try the API", "Read about it", "OpenAPI document"):
        link = page.get_by_role("link", name=name)
        expect(link).to_be_visible()
        assert httpx2.get(str(link.evaluate("link => link.href"))).status_code == 200
