"""Comparing images: the slider, side by side, the difference, zoom; and two results with what differs."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.editing import fill_in, make_the_edit
from tests.browser.finished import body_of, finished_edit
from tests.browser.visit import Visit, serious_findings
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.serving import Served

pytestmark = SHARES_AN_APPLICATION


@pytest.fixture
def compared(page: Page) -> Page:
    """The page with a finished edit."""
    fill_in(page)
    make_the_edit(page)
    expect(page.locator("compare-images .after img")).to_be_visible()
    return page


def style(page: Page, name: str) -> str:
    return page.locator("compare-images").evaluate("(element, name) => element.style.getPropertyValue(name)", name)


def test_slider_moves_by_key_and_pointer(compared: Page) -> None:
    handle = compared.get_by_role("slider", name="Boundary between the two images")
    handle.focus()
    compared.keyboard.press("ArrowLeft")
    expect(handle).to_have_attribute("aria-valuenow", "48")
    compared.keyboard.press("End")
    expect(handle).to_have_attribute("aria-valuenow", "100")
    box = compared.locator(".compare-box").bounding_box()
    compared.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
    compared.mouse.down()
    compared.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    compared.mouse.up()
    expect(handle).to_have_attribute("aria-valuenow", "25")
    assert style(compared, "--split").startswith("25")


def test_zoom_and_pan_move_both_images_together(compared: Page) -> None:
    compared.get_by_role("slider", name="Boundary").focus()
    compared.keyboard.press("+")
    compared.keyboard.press("Shift+ArrowRight")
    places = compared.locator(".pane .image:visible").evaluate_all(
        "(images) => images.map((image) => getComputedStyle(image).transform)"
    )
    assert len(places) == 2
    assert places[0] == places[1] != "none"
    assert style(compared, "--zoom") == "1.5"
    compared.keyboard.press("0")
    assert style(compared, "--zoom") == "1"


def test_side_by_side_shows_both_in_full(compared: Page) -> None:
    compared.get_by_text("Side by side").click()
    boxes = [compared.locator(f".pane.{name}").bounding_box() for name in ("before", "after")]
    assert abs(boxes[0]["width"] - boxes[1]["width"]) < 1
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_difference_is_amplified(compared: Page) -> None:
    """The stand-in editor inverts (200, 120, 40): the difference is (145, 15, 175), and JPEG changes it a little."""
    compared.keyboard.press("Tab")
    compared.get_by_text("Difference", exact=True).click()
    compared.get_by_label("Amplified").fill("2")
    expect(compared.locator(".gain")).to_contain_text("Amplified 2 times")
    pixel = compared.locator("canvas").evaluate("(c) => [...c.getContext('2d').getImageData(50, 50, 1, 1).data]")
    assert pixel[0] == 255
    assert abs(pixel[1] - 30) <= 6
    assert pixel[2] == 255
    expect(compared.locator(".gain")).to_contain_text("of 255")
    assert serious_findings(compared) == []


def test_two_results_are_compared_with_the_parameters_that_differ(compared: Page) -> None:
    compared.get_by_label("Prompt", exact=True).fill("make it day")
    compared.get_by_label("Guidance", exact=True).fill("1")
    make_the_edit(compared)
    expect(compared.locator(".job", has_text="Finished")).to_have_count(2)
    compared.get_by_label("Compare with another result").select_option(label="make it night (seed 42)")
    table = compared.get_by_role("table", name="What differs")
    expect(table.get_by_role("row")).to_have_count(3)
    expect(table.get_by_role("row", name="Prompt")).to_contain_text("make it nightmake it day")
    expect(table.get_by_role("row", name="Guidance")).to_contain_text("41")
    assert serious_findings(compared) == []
    compared.get_by_role("link", name="Swap").click()
    expect(table.get_by_role("row", name="Guidance")).to_contain_text("14")


def test_any_two_results_of_the_history_are_compared(served: Served, visit: Visit) -> None:
    first = finished_edit(served.url, body_of(prompt="one"))
    second = finished_edit(served.url, body_of(prompt="two", seed=7))
    page = visit.open("#history")
    for prompt in ("one", "two"):
        page.get_by_role("listitem").filter(has_text=prompt).get_by_label("Compare").check()
    page.get_by_role("link", name="Compare the two").click()
    assert page.url.endswith(f"#compare/{first['request_id']}%3A0/{second['request_id']}%3A0")
    table = page.get_by_role("table", name="What differs")
    expect(table.get_by_role("row", name="Prompt")).to_contain_text("onetwo")
    expect(table.get_by_role("row", name="Seed")).to_contain_text("427")
