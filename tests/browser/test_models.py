"""What the form of an edit takes from the service: models with their limits, presets, profiles and formats."""

from collections.abc import Collection, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from serve_app.config import MINIATURE_RANDOM, AppConfig, IngressSettings, ModelConfig, TierName
from serve_app.jobs.calibrations import Calibration, CalibrationKey
from serve_app.tasks import Loss, LossRange
from tests.browser.editing import choose_lora, image_bytes, make_the_edit
from tests.browser.painting import PaintingEditors
from tests.browser.visit import Visit, serious_findings, visiting
from tests.unit.conftest import LORA, Application
from tests.unit.serving import Served, serving

MODELS = ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image")
PRESETS = {
    "blueprint": {
        "model": "qwen_image_edit",
        "loras": [{"path": LORA, "network_multiplier": 0.8}],
        "sample_steps": 6,
        "guidance_scale": 1,
        "size": "input",
    },
    "gone": {"model": "qwen_image_edit", "loras": [{"path": "gone.safetensors"}]},
}
TIERS = {
    "balanced": {"feature_cache": 0.1},
    "turbo": {"sampler": "lightning", "steps": 8, "guidance_scale": 1, "uncalibrated": "allow"},
}
LOSS = Loss(LossRange(38.24, 44.0), LossRange(0.97, 0.99), 10.0, 4.0, 44, 1.7e9, "eleven instructions")


class Losses:
    """Only `balanced` was measured."""

    async def find(
        self, model: ModelConfig, tier: TierName, tier_digest: str, adapters: Collection[str]
    ) -> Calibration | None:
        key = CalibrationKey(model.id, tier, tier_digest, "", "")
        return Calibration(key, LOSS) if tier == "balanced" else None


@pytest.fixture(scope="module")
def several(shared_config: AppConfig) -> Iterator[Served]:
    """A service with three models, of which one has tiers, and two presets, one of them broken."""
    models = [{"id": model, "checkpoint": MINIATURE_RANDOM} for model in MODELS]
    models[0] |= {"tiers": TIERS}
    changed = AppConfig.model_validate(shared_config.model_dump() | {"models": models})
    application = Application(changed, PaintingEditors, Losses())
    application.service.reconfigure(IngressSettings.model_validate({"presets": PRESETS}))
    with serving(application) as served:
        yield served


@pytest.fixture
def served(several: Served) -> Iterator[Served]:
    yield several
    several.application.editors.forget()


def give_images(page: Page, *widths: int) -> None:
    files = [
        {"name": f"{width}.png", "mimeType": "image/png", "buffer": image_bytes(width, 64, (width, 0, 0))}
        for width in widths
    ]
    page.locator("drop-zone input[type=file]").first.set_input_files(files)
    expect(page.get_by_text("x64", exact=False)).to_have_count(len(widths))


def test_a_model_of_several_images_gets_them_in_the_users_order(served: Served, page: Page) -> None:
    page.get_by_label("Model or preset").select_option(label="qwen_image_edit_plus")
    expect(page.get_by_role("heading", name="Drop up to 3 images here")).to_be_visible()
    give_images(page, 80, 96, 112)
    page.get_by_role("button", name="Move image 3 up").click()
    page.get_by_role("button", name="Remove image 1").click()
    expect(page.locator(".input-name")).to_have_text(["112.png", "96.png"])
    page.get_by_label("Prompt", exact=True).fill("put them together")
    choose_lora(page)
    assert serious_findings(page) == []
    make_the_edit(page)
    expect(page.locator("compare-images")).to_be_visible()
    [task] = served.application.editors.tasks
    sizes = [image["size"] for image in page.evaluate(EFFECTIVE, task.request_id)["control_images"]]
    assert sizes == [[112, 64], [96, 64]]


VALUES = "(all) => all.map((option) => option.value)"
EFFECTIVE = "async (id) => (await (await fetch(`v1/requests/${id}/result`)).json()).metadata.effective[0]"


def test_images_that_a_model_does_not_take_are_kept_and_not_sent(served: Served, page: Page) -> None:
    page.get_by_label("Model or preset").select_option(label="qwen_image_edit_plus")
    give_images(page, 80, 96)
    page.get_by_label("Model or preset").select_option(label="qwen_image_edit")
    expect(page.locator(".input", has_text="not used by this model")).to_have_count(1)
    page.get_by_label("Prompt", exact=True).fill("make it night")
    choose_lora(page)
    make_the_edit(page)
    expect(page.locator("compare-images")).to_be_visible()
    assert len(served.application.editors.tasks[0].plan.control_images) == 1


def test_a_model_without_images_asks_for_none(served: Served, page: Page) -> None:
    page.get_by_label("Model or preset").select_option(label="qwen_image")
    expect(page.locator("image-field")).to_have_text("")
    expect(page.get_by_text("As the image")).to_have_count(0)
    page.get_by_label("Prompt", exact=True).fill("a red bicycle")
    choose_lora(page)
    make_the_edit(page)
    expect(page.get_by_role("img", name="Result: a red bicycle")).to_be_visible()


def test_a_preset_fills_in_what_it_sets_and_gives_way_to_the_user(served: Served, page: Page) -> None:
    page.get_by_label("Model or preset").select_option(label="blueprint")
    give_images(page, 96)
    page.get_by_label("Prompt", exact=True).fill("make it night")
    expect(page.get_by_role("spinbutton", name="Strength of lora")).to_have_value("0.8")
    expect(page.locator(".plan")).to_contain_text("6 steps, no guidance")
    make_the_edit(page)
    expect(page.locator("compare-images")).to_be_visible()
    page.get_by_role("spinbutton", name="Strength of lora").fill("-1")
    page.get_by_label("Steps", exact=True).fill("3")
    make_the_edit(page)
    expect(page.locator(".job", has_text="Finished")).to_have_count(2)
    first, second = (task.plan for task in served.application.editors.tasks)
    assert (first.preset, first.steps, first.adapters[0].scale) == ("blueprint", 6, 0.8)
    assert (second.preset, second.steps, second.adapters[0].scale) == ("blueprint", 3, -1.0)


def test_a_broken_preset_cannot_be_chosen_and_says_why(page: Page) -> None:
    expect(page.get_by_role("option", name="gone")).to_be_disabled()
    page.get_by_text("1 preset cannot be used").click()
    expect(page.get_by_text("there is no LoRA file 'gone.safetensors'")).to_be_visible()


def test_profiles_and_formats_are_those_of_the_service(visit: Visit, page: Page) -> None:
    document = page.evaluate("async () => (await (await fetch('openapi.json')).json()).components.schemas")
    for label, schema in (("Profile", "Profile"), ("Format", "OutputFormat")):
        field = page.get_by_label(label, exact=True)
        expect(field).to_be_attached()
        options = field.locator("option").evaluate_all("(all) => all.map((o) => o.value)")
        assert sorted(options) == sorted(["", *document[schema]["enum"]])


def test_on_a_phone_the_image_comes_first_and_the_button_stays_in_reach(browser: Browser, served: Served) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visiting(browser, served.url, **phone) as visit:
        page = visit.open()
        expect(page.get_by_text("Take a photo")).to_be_visible()
        give_images(page, 96)
        button, image = (page.locator(selector).bounding_box() for selector in (".panel-foot .primary", ".stage-box"))
        assert image["y"] < 200
        assert button["y"] + button["height"] <= 844
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
        assert serious_findings(page) == []


def test_tiers_of_the_model_are_offered_with_what_was_measured(served: Served, page: Page) -> None:
    model, quality = page.get_by_label("Model or preset"), page.get_by_label("Quality", exact=True)
    model.select_option(label="qwen_image")
    expect(quality).to_have_count(0)
    model.select_option(label="qwen_image_edit")
    assert quality.locator("option").evaluate_all(VALUES) == ["", "balanced", "turbo"]
    expect(quality.locator("option").first).to_have_text("exact")
    give_images(page, 80)
    page.get_by_label("Prompt", exact=True).fill("make it night")
    page.get_by_label("Steps", exact=True).fill("3")
    choose_lora(page)
    quality.select_option("balanced")
    expect(page.get_by_label("Quick look")).to_have_count(1)
    measured = "Measured: 2.5 times as fast as exact; PSNR 38.2 dB at worst, SSIM 0.970, over 44 images"
    expect(page.get_by_text(measured)).to_be_visible()
    # The tier's own steps take the place of the user's.
    quality.select_option("turbo")
    expect(page.get_by_text("Its loss was not measured for these LoRAs.")).to_be_visible()
    expect(page.get_by_label("Steps", exact=True)).to_have_value("")
    expect(page.get_by_label("Quick look")).to_have_count(0)
    make_the_edit(page)
    expect(page.locator("compare-images")).to_be_visible()
    [task] = served.application.editors.tasks
    assert (task.plan.quality, task.plan.steps) == ("turbo", 8)
    assert serious_findings(page) == []
