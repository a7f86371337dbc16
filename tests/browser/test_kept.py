"""What the browser keeps of an edit: for its tab alone."""

import time

from playwright.sync_api import Page, expect

from tests.browser.editing import drop_image, fill_in
from tests.browser.visit import PATIENCE_MS, Visit

FILES = """async () => {
  // Opening a database that is not there would make one.
  if (!(await indexedDB.databases()).some((database) => database.name === "edits" && database.version === 2)) return 0;
  return await new Promise((resolve) => {
  const opening = indexedDB.open("edits");
  opening.onsuccess = () => {
    const counting = opening.result.transaction("files").objectStore("files").count();
    counting.onsuccess = () => { opening.result.close(); resolve(counting.result); };
  };
  });
}"""


def has_files(page: Page, count: int) -> None:
    """Wait until the browser keeps so many photographs: it does so after they are shown."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while page.evaluate(FILES) != count:
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def test_photograph_is_shown_again_after_a_reload_of_its_tab(visit: Visit, page: Page) -> None:
    fill_in(page)
    has_files(page, 1)
    page = visit.open()
    expect(page.get_by_role("img", name="Input image: dropped.png")).to_be_visible()


def test_photographs_of_a_closed_tab_are_deleted_and_those_of_an_open_one_stay(visit: Visit, page: Page) -> None:
    other = page.context.new_page()
    other.goto(visit.url)
    drop_image(page)
    has_files(page, 1)
    drop_image(other)
    # The same photograph, once for each tab.
    has_files(other, 2)
    other.close()
    third = page.context.new_page()
    third.clock.install()
    third.goto(visit.url)
    drop_image(third)
    has_files(third, 3)
    third.clock.fast_forward("00:11")
    has_files(third, 2)
    page.reload()
    expect(page.get_by_role("img", name="Input image: dropped.png")).to_be_visible()


def test_all_is_forgotten_at_once(visit: Visit, page: Page) -> None:
    fill_in(page)
    has_files(page, 1)
    page = visit.open("#operation")
    page.get_by_role("button", name="Forget them now").click()
    page.wait_for_function("() => Object.keys(sessionStorage).every((name) => name !== 'edits.draft')")
    page = visit.open()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("")
    drop_image(page)
    has_files(page, 1)
