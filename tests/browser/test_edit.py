"""The view Edit: preparing an edit, and what is said before it is sent."""

import json
from pathlib import Path

import httpx2
from playwright.sync_api import Page, expect

from serve_app.schemas.requests import MAX_SEED
from tests.browser.editing import choose_image, choose_lora, drop_image, fill_in, image_bytes, make_the_edit, write_lora
from tests.browser.finished import body_of, finished_edit
from tests.browser.visit import Visit, serious_findings
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.serving import Served

pytestmark = SHARES_AN_APPLICATION


def test_an_image_is_dropped_and_a_lora_chosen_and_the_result_is_compared(served: Served, page: Page) -> None:
    drop_image(page)
    expect(page.get_by_text("96x64")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("make it night")
    choose_lora(page)
    slider = page.get_by_role("slider", name="Strength of lora")
    slider.fill("-0.5")
    make_the_edit(page)
    expect(page.locator("compare-images")).to_be_visible()
    [task] = served.application.editors.tasks
    assert (task.plan.prompt, task.plan.adapters[0].scale) == ("make it night", -0.5)
    # The shape of the image, which the user has not chosen otherwise.
    assert (task.plan.width, task.plan.height) == (1248, 832)


def test_strength_is_a_number_within_its_bounds_and_a_double_click_makes_it_one(page: Page) -> None:
    choose_lora(page)
    slider = page.get_by_role("slider", name="Strength of lora")
    number = page.get_by_role("spinbutton", name="Strength of lora")
    number.fill("3")
    number.blur()
    expect(slider).to_have_value("2")
    expect(number).to_have_value("2")
    slider.dispatch_event("dblclick")
    expect(number).to_have_value("1")


def test_what_will_be_done_is_said_before_anything_is_sent(served: Served, page: Page) -> None:
    fill_in(page)
    expect(page.locator(".plan")).to_contain_text("1248x832 pixels, 4 steps, guidance 4, seed 42, 1 LoRA, jpeg")
    page.get_by_text("Custom", exact=True).click()
    page.get_by_label("Width").fill("777")
    page.get_by_label("Width").blur()
    expect(page.get_by_text("The image will have 768x832 pixels.")).to_be_visible()
    expect(page.locator(".hint")).to_contain_text("stretched")
    page.get_by_role("button", name="Use the image's shape").click()
    expect(page.locator(".hint")).to_have_count(0)
    assert served.application.editors.tasks == []


def test_what_is_missing_is_asked_for(page: Page) -> None:
    problem = page.locator(".panel-foot .problem")
    make_the_edit(page)
    expect(problem).to_have_text("Choose an image first.")
    choose_image(page)
    make_the_edit(page)
    expect(problem).to_contain_text("prompt")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("make it night")
    make_the_edit(page)
    expect(problem).to_contain_text("LoRA")
    expect(page.get_by_role("searchbox", name="Search LoRAs")).to_be_focused()


def test_an_unusable_image_is_refused_with_the_services_sentence(visit: Visit, page: Page) -> None:
    visit.expect("status of 400")
    choose_image(page, content=b"no image")
    expect(page.locator("image-field .problem")).to_contain_text("Try again")
    page.get_by_label("Prompt", exact=True).fill("make it night")
    choose_lora(page)
    make_the_edit(page)
    expect(page.locator(".panel-foot .problem")).to_contain_text("Remove it")


def test_seed_is_kept_rolled_or_drawn_by_the_service(served: Served, page: Page) -> None:
    fill_in(page)
    seed = page.get_by_label("Seed", exact=True)
    expect(seed).to_have_attribute("placeholder", "42")
    page.get_by_role("button", name="Another seed").click()
    expect(seed).not_to_have_value("")
    rolled = int(seed.input_value())
    make_the_edit(page)
    expect(page.locator("compare-images")).to_be_visible()
    page.get_by_role("button", name="Keep the seed").click()
    expect(page.locator(".plan")).to_contain_text("a new seed")
    make_the_edit(page)
    expect(page.locator(".job", has_text="Finished")).to_have_count(2)
    first, second = served.application.editors.tasks
    assert first.plan.seed == rolled != second.plan.seed


def test_the_draft_survives_a_reload_with_its_image(visit: Visit, page: Page) -> None:
    fill_in(page)
    page = visit.open()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("make it night")
    expect(page.locator(".stage-box img")).to_be_visible()
    expect(page.locator(".plan")).to_contain_text("4 steps")


def test_the_sample_photograph_is_an_edit_in_two_clicks(served: Served, page: Page) -> None:
    page.get_by_role("button", name="Try the sample photograph").click()
    expect(page.locator(".plan")).to_contain_text("8 steps, no guidance")
    make_the_edit(page)
    expect(page.locator("compare-images")).to_be_visible()
    assert len(served.application.editors.tasks) == 1


def test_a_quick_look_is_one_click_away_and_back(page: Page) -> None:
    fill_in(page)
    quick = page.get_by_label("Quick look")
    expect(quick).not_to_be_checked()
    quick.check()
    expect(page.locator(".plan")).to_contain_text("8 steps, no guidance")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("8")
    quick.uncheck()
    expect(page.locator(".plan")).to_contain_text("25 steps, guidance 4")


def test_nothing_serious_is_found_in_any_state(served: Served, page: Page) -> None:
    assert serious_findings(page) == []
    served.hold_back()
    served.application.editors.hold_after = 2
    fill_in(page)
    page.get_by_text("More settings").click()
    assert serious_findings(page) == []
    make_the_edit(page)
    expect(page.locator(".stage-box .preview")).to_be_visible()
    assert serious_findings(page) == []
    served.let_go()
    expect(page.locator("compare-images")).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious_findings(page) == []


def test_a_service_without_a_fitting_body_says_so_while_the_user_edits(visit: Visit, page: Page) -> None:
    visit.expect("status of 400")
    page.route("**/v1/explain", lambda route: route.fulfill(status=400, body=json.dumps(REFUSAL)))
    drop_image(page, image_bytes())
    page.get_by_label("Prompt", exact=True).fill("make it night")
    choose_lora(page)
    expect(page.locator("plan-summary .problem")).to_have_text("The prompt is too long.")


REFUSAL = {"detail": {"error": {"code": "INVALID_PARAMETER", "message": "the prompt is too long", "details": {}}}}


def test_a_loras_reason_comes_after_those_that_fit(served: Served, visit: Visit) -> None:
    broken = Path(served.application.config.lora_root) / "a_broken.safetensors"
    broken.write_bytes(b"no LoRA")
    page = visit.open()
    options = page.locator(".lora-option")
    expect(options).to_have_count(2)
    expect(options.last).to_contain_text("a_broken")
    expect(options.last).to_have_attribute("aria-disabled", "true")
    options.last.dispatch_event("click")
    expect(page.locator(".lora")).to_have_count(0)
    broken.unlink()


def test_an_upload_that_the_service_has_lost_is_sent_again(served: Served, visit: Visit, page: Page) -> None:
    visit.expect("status of 400")
    fill_in(page)
    [upload] = page.evaluate("() => JSON.parse(sessionStorage['edits.draft']).images.map((image) => image.upload.id)")
    page.evaluate("(id) => fetch(`v1/uploads/${id}`, {method: 'DELETE'})", upload)
    page.get_by_label("Prompt", exact=True).fill("make it day")
    make_the_edit(page)
    expect(page.locator("compare-images")).to_be_visible()
    assert served.application.editors.tasks[0].plan.control_images == (upload,)


def test_a_seed_of_nineteen_digits_keeps_them(served: Served, visit: Visit, page: Page) -> None:
    fill_in(page)
    seed = page.get_by_label("Seed", exact=True)
    seed.fill(str(MAX_SEED - 6))
    seed.blur()
    expect(page.locator(".plan")).to_contain_text(f"seed {MAX_SEED - 6}")
    page = visit.open()
    seed = page.get_by_label("Seed", exact=True)
    expect(seed).to_have_value(str(MAX_SEED - 6))
    make_the_edit(page)
    expect(page.locator(".stage-foot")).to_contain_text(f"seed {MAX_SEED - 6}")
    seed.fill(f"{MAX_SEED}0")
    seed.blur()
    expect(seed).to_have_value(str(MAX_SEED))
    seed.fill("1e16")
    seed.blur()
    expect(seed).to_have_value(str(10**16))
    page.get_by_role("link", name="Settings and code").click()
    expect(page.locator("copy-code")).to_contain_text(f"seed={MAX_SEED - 6}")
    page.locator("copy-code").get_by_text("curl", exact=True).click()
    expect(page.locator("copy-code")).to_contain_text(f'"seed": {MAX_SEED - 6}')
    page.get_by_role("button", name="Use these settings").click()
    expect(seed).to_have_value(str(MAX_SEED - 6))
    assert [task.plan.seed for task in served.application.editors.tasks] == [MAX_SEED - 6]
    axes = page.evaluate(
        """async (seeds) => {
          const { sweepOf } = await import("./web/sweep-fields.js");
          const { stringify } = await import("./web/exact-json.js");
          return stringify(sweepOf({}, { loras: "", multipliers: "", prompts: "", seeds }).axes);
        }""",
        f"{MAX_SEED}, -1, 7",
    )
    assert json.loads(axes) == {"seeds": [MAX_SEED, -1, 7]}


def test_a_dropped_png_of_the_service_offers_its_settings(served: Served, page: Page) -> None:
    control = image_bytes(120, 80)
    result = finished_edit(served.url, body_of(control, prompt="as a poster", seed=7) | {"output_format": "png"})
    made = httpx2.get(result["outputs"]["images"][0]["url"]).content
    offer, prompt = page.get_by_role("button", name="Use these settings"), page.get_by_label("Prompt", exact=True)
    prompt.fill("mine")
    drop_image(page)
    expect(page.get_by_text("96x64", exact=True)).to_be_visible()
    expect(offer).to_have_count(0)
    drop_image(page, made)
    expect(page.get_by_text("dropped.png carries the settings of the edit that made it.")).to_be_visible()
    assert serious_findings(page) == []
    page.get_by_role("button", name="Only the image").click()
    expect(offer).to_have_count(0)
    expect(prompt).to_have_value("mine")
    # Another image takes the offer away.
    drop_image(page, made)
    expect(offer).to_be_visible()
    page.get_by_role("button", name="Remove image").click()
    expect(offer).to_have_count(0)
    choose_image(page, "made.png", made)
    offer.click()
    expect(prompt).to_have_value("as a poster")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")
    # The image is the one that the edit was made from.
    expect(page.get_by_text("120x80, stored by the service")).to_be_visible()
    expect(offer).to_have_count(0)
    # This browser has no copy of it, so both places say that the service has it; also after a reload.
    stored = page.locator(".stage-box").get_by_text("The service has the image of this edit (120x80) and will use it.")
    expect(stored).to_be_visible()
    expect(page.locator("drop-zone")).to_have_count(0)
    expect(page.locator("image-field").get_by_text("no picture")).to_be_visible()
    assert serious_findings(page) == []
    page.reload()
    expect(stored).to_be_visible()
    make_the_edit(page)
    expect(page.locator(".stage").get_by_role("link", name="Download PNG", exact=True)).to_be_visible()
    [first, second] = served.application.editors.tasks[-2:]
    assert first.plan.control_images == second.plan.control_images


def test_a_trigger_word_is_offered_only_to_a_prompt_without_it(served: Served, page: Page) -> None:
    write_lora(served.application.config.lora_root, "job/word.safetensors", ss_tag_frequency='{"1_s+s": {}}')
    page.reload()
    prompt, offer = page.get_by_label("Prompt", exact=True), page.get_by_role("button", name="Add its trigger word")
    choose_lora(page, "word")
    for without in ("", "make it night", "s+ss make it night"):
        prompt.fill(without)
        expect(offer).to_be_visible()
    for with_it in ("s+s make it night", "make it s+s, at night", "[trigger] make it night"):
        prompt.fill(with_it)
        expect(offer).to_have_count(0)
    prompt.fill("make it night")
    offer.click()
    expect(prompt).to_have_value("[trigger] make it night")
    expect(offer).to_have_count(0)
