"""The view Quality: what was measured of tiers, as a table and as a drawing."""

from collections.abc import Mapping
from dataclasses import replace

from playwright.sync_api import expect

from serve_app.config import AppConfig, TierConfig
from serve_app.intake.calibrations.losses import MeasuredLosses
from serve_app.jobs.calibrations import Calibration, digest_of
from serve_app.tasks import Loss, LossRange
from tests.browser.conftest import painting
from tests.browser.editing import fill_in, make_the_edit
from tests.browser.finished import MARKUP
from tests.browser.visit import serious_findings, visiting
from tests.unit.serving import Served

TIERS = {"balanced": TierConfig(feature_cache=0.1), "fast": TierConfig(steps=8)}
LOSS = Loss(LossRange(41.25, 44.0), LossRange(0.983, 0.991), 10.0, 8.0, 11, 1_796_025_600.0, "11 prompts", 0.041)
ROWS = (("balanced", (), 41.25, 8.0), ("balanced", (MARKUP,), None, 7.5), ("fast", (), 31.5, 4.0))


def with_tiers(config: AppConfig, tiers: Mapping[str, TierConfig] = TIERS) -> AppConfig:
    model = config.models[0].model_copy(update={"tiers": tiers})
    return config.model_copy(update={"models": (model,)})


async def record(served: Served) -> None:
    """Three measured losses, and one whose tier was another."""
    service = served.application.service
    [model] = service.config.models
    losses = MeasuredLosses(service.resources.store.calibrations)
    for tier, paths, worst, seconds in ROWS:
        key = await losses.key(model, tier, TIERS[tier].digest(), paths)
        adapters = [{"path": path, "id": path, "network_multiplier": 1.0} for path in paths]
        details = {"adapters": adapters, "checkpoint": model.checkpoint, "tier": {}, "set": "prompts.yaml"}
        details |= {"sizes": ["64x64"], "steps": [8], "how": "edits-server calibrate"}
        # An earlier version has measured those without a LoRA.
        details |= {"guidance_scales": [1.5]} if paths else {}
        loss = replace(LOSS, psnr_db=LossRange(worst, 44.0), tier_s=seconds)
        await service.resources.store.calibrations.record(Calibration(key, loss, details))
    old = replace(key, settings=digest_of(["other settings"]))
    await service.resources.store.calibrations.record(Calibration(old, loss, details))


def test_what_was_measured_is_shown(config: AppConfig, browser) -> None:
    with painting(with_tiers(config)) as served, visiting(browser, served.url) as visit:
        page = visit.open("#quality")
        expect(page.get_by_text("Nothing has been measured yet.")).to_be_visible()
        configured = page.get_by_role("region", name="Configured tiers of qwen_image_edit")
        assert configured.locator("dt").all_inner_texts() == ["balanced", "fast"]
        expect(configured).to_contain_text("skips blocks that change by less than 0.1; refused until it is measured")
        expect(configured).to_contain_text("8 steps; refused until it is measured")
        expect(page.get_by_text("edits-server calibrate serve_config.yaml")).to_be_visible()
        assert serious_findings(page) == []
        served.run(record(served), 30)
        page.reload()
        rows = page.get_by_role("row")
        expect(rows).to_have_count(5)
        of_lora = rows.filter(has_text="onerror")
        expect(of_lora).to_contain_text("equal, 44.0")
        expect(of_lora).to_contain_text("1.33")
        expect(of_lora).to_contain_text("8 steps, guidance 1.5")
        expect(rows.filter(has_text="8 steps, guidance unknown")).to_have_count(3)
        expect(rows.filter(has_text="No longer valid")).to_have_count(1)
        # A mark for each that holds.
        drawing = page.get_by_role("img", name="Tiers of qwen_image_edit: loss against speed")
        expect(drawing.locator("circle, rect")).to_have_count(3)
        expect(drawing.locator("title").last).to_have_text("fast, none: 2.50 times as fast, 31.5 dB")
        assert page.title() == "Quality · Image edits"
        assert page.locator("img[src='x']").count() == 0
        assert serious_findings(page) == []
        assert visit.unexpected() == []


def test_a_sweep_compares_qualities(config: AppConfig, browser) -> None:
    tiers = {"balanced": TierConfig(feature_cache=0.1, uncalibrated="allow"), "fast": TIERS["fast"]}
    with painting(with_tiers(config, tiers)) as served, visiting(browser, served.url) as visit:
        page = visit.open()
        fill_in(page)
        page.get_by_role("link", name="Sweeps").click()
        page.get_by_label("Strengths").fill("1")
        # Profiles are closed, with the triangle that says so.
        summary = page.locator("summary", has_text="Profiles")
        assert summary.evaluate("(element) => getComputedStyle(element).display") == "list-item"
        for name in ("exact", "balanced"):
            page.get_by_label(name, exact=True).check()
        assert serious_findings(page) == []
        # Its steps are other ones than those of the form, which the page says without asking the service.
        page.get_by_label("fast", exact=True).check()
        reason = (
            "The quality fast sets Steps to 8, and the form of the edit has 4. Clear Steps there, or leave fast out."
        )
        expect(page.get_by_role("alert")).to_have_text(reason)
        expect(page.get_by_role("button", name="Make the images")).to_be_disabled()
        page.get_by_label("fast", exact=True).uncheck()
        page.get_by_role("button", name="Make 2 images").click()
        expect(page.locator(".cell")).to_have_count(2)
        assert page.locator("tbody th").all_inner_texts() == ["quality exact", "quality balanced"]
        made = {task.plan.quality for task in served.application.editors.tasks}
        assert made == {"exact", "balanced"}


def test_a_model_without_tiers_has_no_qualities_to_sweep(config: AppConfig, browser) -> None:
    with painting(config) as served, visiting(browser, served.url) as visit:
        page = visit.open()
        fill_in(page)
        page.get_by_role("link", name="Sweeps").click()
        expect(page.get_by_text("Profiles")).to_be_visible()
        expect(page.get_by_text("Qualities")).to_have_count(0)


def test_a_refused_quality_is_said_once(config: AppConfig, browser) -> None:
    with painting(with_tiers(config)) as served, visiting(browser, served.url) as visit:
        page = visit.open()
        fill_in(page)
        visit.expect(r"status of 400 .*/v1/(explain|inference)")
        page.get_by_label("Quality", exact=True).select_option("balanced")
        refusal = page.get_by_role("alert").filter(has_text="uality balanced is not available")
        expect(refusal).to_have_count(1)
        with page.expect_response("**/v1/inference"):
            make_the_edit(page)
        expect(page.get_by_role("button", name="Make the edit")).to_be_enabled()
        expect(refusal).to_have_count(1)
