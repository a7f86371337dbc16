"""What goes wrong on a page fails its test."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.visit import VIOLATION, Visit, serious_findings, visiting
from tests.unit.serving import Served


def test_page_opens_and_nothing_goes_wrong(visit: Visit, page: Page) -> None:
    expect(page.get_by_role("main")).to_be_visible()
    assert visit.faults == []


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("() => console.error('broken')", "console: broken"),
        ("() => { setTimeout(() => { throw new Error('thrown') }) }", "error: .*thrown"),
        ("() => { document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">') }", VIOLATION),
        ("() => { new Image().src = 'http://127.0.0.1:1/pixel.png' }", VIOLATION),
        ("() => { fetch('https://other.example/').catch(() => {}) }", VIOLATION),
        ("() => { location.href = 'http://other.example/' }", "request to another host: http://other.example/"),
        ("() => { fetch('v1/nothing') }", "console: Failed to load resource"),
    ],
)
def test_faults_are_seen(visit: Visit, page: Page, script: str, fault: str) -> None:
    assert visit.faults == []
    # This and what follows from it is meant.
    visit.expect("")
    page.evaluate(script)
    visit.wait_for_fault(fault)


def test_a_fault_fails_the_test(browser: Browser, served: Served) -> None:
    def break_a_page() -> None:
        with visiting(browser, served.url) as visit:
            visit.open().evaluate("() => console.error('broken')")
            visit.wait_for_fault("broken")

    with pytest.raises(AssertionError, match="console: broken"):
        break_a_page()


def test_what_keeps_people_from_using_the_page_is_found(page: Page) -> None:
    assert serious_findings(page) == []
    page.evaluate("() => document.querySelector('main').append(document.createElement('button'))")
    [finding] = serious_findings(page)
    assert finding.startswith("button-name")
