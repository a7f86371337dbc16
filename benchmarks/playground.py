"""How much the playground loads, and when it shows something: each view in a fresh browser, over a stand-in service.

    python -m benchmarks.playground

It prints a table in Markdown. Chromium has to be installed. The service is on the same machine, so the times are those
of the browser and of the page itself.
"""

import asyncio
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Response, sync_playwright

from serve_app.config import SQLITE_PREFIX
from serve_app.jobs.database import Database
from tests.browser.finished import finished_edit
from tests.browser.painting import PaintingEditors
from tests.browser.visit import CHROMIUM_OPTIONS, visiting
from tests.programs import chromium
from tests.unit.conftest import Application, config_in
from tests.unit.serving import serving

# What shows that a view has its data.
VIEWS = {
    "": ("Edit", ".lora-option"),
    "#history": ("History", ".history-card img"),
    "#sweeps": ("Sweeps", "new-sweep .card"),
    "#training": ("Training", "training-view h1"),
    "#operation": ("Operation", "tbody tr"),
}
RUNS = 5
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
# Answers of the API are data, not the page.
API = "/v1/"


@dataclass(frozen=True)
class Load:
    """One load of a view. `page_bytes` are its files without headers, as they are sent; times are in ms."""

    files: int
    page_bytes: int
    first_paint_ms: float
    complete_ms: float


def load(browser: Browser, url: str, view: str) -> Load:
    """Load a view with an empty cache, until it shows its data."""
    with visiting(browser, url) as visit:
        answers: list[Response] = []
        visit.page.on("response", lambda answer: answers.append(answer))
        page = visit.open(view)
        page.locator(VIEWS[view][1]).first.wait_for()
        complete = page.evaluate("() => performance.now()")
        page.wait_for_function(PAINT)
        files = [answer for answer in answers if API not in answer.url and answer.url.startswith(url)]
        sizes = [answer.request.sizes()["responseBodySize"] for answer in files]
        return Load(len(files), sum(sizes), page.evaluate(PAINT), complete)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = f"{SQLITE_PREFIX}{folder}/jobs.sqlite3"
        asyncio.run(_migrate(database))
        config = config_in(Path(folder), database).model_copy(update={"history_without_keys": True})
        with serving(Application(config, PaintingEditors)) as served, sync_playwright() as playwright:
            for _ in range(24):
                finished_edit(served.url)
            browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_OPTIONS)
            loads = {view: [load(browser, served.url, view) for _ in range(RUNS)] for view in VIEWS}
            browser.close()
    print("| view | files | bytes | first paint (ms) | with its data (ms) |")
    print("|---|---|---|---|---|")
    for view, runs in loads.items():
        paint = statistics.median(run.first_paint_ms for run in runs)
        complete = statistics.median(run.complete_ms for run in runs)
        print(f"| {VIEWS[view][0]} | {runs[0].files} | {runs[0].page_bytes:,} | {paint:.0f} | {complete:.0f} |")


async def _migrate(url: str) -> None:
    database = Database(url)
    await database.open()
    await database.close()


if __name__ == "__main__":
    main()
