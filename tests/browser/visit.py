"""A page that a test has open in Chromium, and everything that goes wrong on it."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect

from tests.programs import JAVASCRIPT, missing

# A container has no user namespaces for Chromium's sandbox, and a small /dev/shm. These pages are our own.
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
# How long a test waits for what must come (ms).
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)
# Of axe-core's findings, those that keep somebody from using the page.
SERIOUS = ("serious", "critical")
VIOLATION = "violates its Content-Security-Policy"
# A blocked load says so in the console as well; what the event tells is clearer.
REPORT_VIOLATIONS = f"""
document.addEventListener("securitypolicyviolation", (event) => {{
  console.error(`the page {VIOLATION}: ${{event.violatedDirective}} ${{event.blockedURI}}`);
}});
"""
LOCAL_SCHEMES = ("blob:", "data:")


@dataclass
class Visit:
    """`faults` are errors in the console, violations of the policy, and requests to other hosts.

    A test that provokes an error says so with `expect`.
    """

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def open(self, view: str = "") -> Page:
        """The page, after a (re)load, at the view that a hash names: `#history`."""
        self.page.goto(f"{self.url}/{view}")
        return self.page

    def expect(self, pattern: str) -> None:
        """Faults that this pattern matches are meant."""
        self.expected.append(pattern)

    def unexpected(self) -> list[str]:
        return [fault for fault in self.faults if not any(re.search(pattern, fault) for pattern in self.expected)]

    def wait_for_fault(self, pattern: str) -> None:
        """Wait until there is a fault that the pattern matches."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not any(re.search(pattern, fault) for fault in self.faults):
            assert time.monotonic() < deadline, self.faults
            # Events of the page arrive only while it is asked something.
            self.page.wait_for_timeout(20)

    def watch(self, page: Page) -> None:
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._see_message)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", self._see_request)

    def _see_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text} ({message.location['url']})")

    def _see_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", *LOCAL_SCHEMES)):
            self.faults.append(f"request to another host: {request.url}")


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A new session of the browser with one page, which is not loaded yet. Fails if something went wrong on it."""
    context: BrowserContext = browser.new_context(reduced_motion="reduce", accept_downloads=True, **options)
    context.add_init_script(REPORT_VIOLATIONS)
    context.set_default_timeout(PATIENCE_MS)
    try:
        visit = Visit(context.new_page(), url)
        visit.watch(visit.page)
        yield visit
        if faults := visit.unexpected():
            raise AssertionError("\n".join(["this went wrong on the page:", *faults]))
    finally:
        context.close()


def serious_findings(page: Page) -> list[str]:
    """What axe-core finds on the page as it is now: each with the rule and the elements."""
    page.evaluate(_axe_core())
    # Without `preload`, axe-core adds no style sheets, which the policy would block.
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations'], preload: false})")
    return [
        f"{violation['id']}: {violation['help']}: {[node['html'][:200] for node in violation['nodes']]}"
        for violation in found["violations"]
        if violation["impact"] in SERIOUS
    ]


def _axe_core() -> str:
    file: Path = JAVASCRIPT / "node_modules/axe-core/axe.min.js"
    if not file.exists():
        missing("axe-core is not installed (`make test` does so, with nodejs and npm)")
    return file.read_text()
