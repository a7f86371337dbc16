"""The view Training: sample images by step, and previews made again next to the trainer's own."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.finished import MARKUP
from tests.browser.visit import Visit, serious_findings
from tests.conftest import as_png, noise_image
from tests.training_folder import sample_name, trainer_config, write_checkpoints, write_config, write_sample_image
from tests.unit.conftest import safetensors_bytes
from tests.unit.serving import Served
from tests.unit.test_training_by_http import as_jpeg

JOB = "people/my_job"
SAMPLE = {"prompt": "[trigger] at night", "ctrl_img": "/home/me/cat.png", "width": 64, "height": 64, "sample_steps": 2}


@pytest.fixture
def job(served: Served) -> Path:
    """A job with two samples, of which the step 0, a deleted step and the step 250 have images."""
    root = Path(served.application.config.lora_root)
    folder = root / JOB
    write_config(folder, trainer_config(sample={"samples": [SAMPLE, SAMPLE | {"seed": -1}]}))
    write_checkpoints(folder, safetensors_bytes(), (250,))
    for step in (0, 100, 250):
        for number in (0, 1):
            write_sample_image(folder, sample_name(step, number), as_jpeg(noise_image(64, 64, step + number)))
    (root / "cat.png").write_bytes(as_png(noise_image(64, 64)))
    return folder


def test_samples_are_shown_by_step_and_made_again(visit: Visit, job: Path) -> None:
    page = visit.open("#training")
    page.get_by_role("link", name=JOB).click()
    table = page.get_by_role("region", name="Sample images by step")
    expect(table.get_by_role("columnheader")).to_have_count(4)
    expect(table.get_by_role("img", name="Sample 1 at step 100")).to_be_visible()
    # The trainer has deleted this one's checkpoint.
    expect(page.get_by_role("button", name="Make again: step 100")).to_have_count(0)
    expect(table.get_by_text("the trainer drew one and wrote it nowhere")).to_be_visible()
    assert serious_findings(page) == []
    page.get_by_role("button", name="Make again: step 250").click()
    expect(page.get_by_role("heading", name="Step 250")).to_be_visible()
    expect(page.get_by_text("0 of 1 previews are equal in every pixel")).to_be_visible()
    expect(page.get_by_role("button", name="Sample 0")).to_contain_text(" dB")
    expect(page.locator("compare-images img")).to_have_count(2)
    assert serious_findings(page) == []
    # The address alone finds them again.
    page.reload()
    expect(page.locator("compare-images img")).to_have_count(2)


def test_control_image_that_is_missing_is_named(visit: Visit, job: Path) -> None:
    (job.parent.parent / "cat.png").unlink()
    visit.expect("status of 400")
    page = visit.open(f"#training/{JOB.replace('/', '%2F')}")
    page.get_by_role("button", name="Make again: step 250").click()
    expect(page.get_by_role("alert")).to_contain_text("/home/me/cat.png")


def test_without_jobs_it_says_what_to_do(page: Page) -> None:
    page.get_by_role("link", name="Training").click()
    expect(page.get_by_text("There are none")).to_be_visible()


def test_texts_of_a_config_are_texts(visit: Visit, job: Path) -> None:
    write_config(job, trainer_config(trigger_word=MARKUP, sample={"samples": [SAMPLE | {"prompt": MARKUP}]}))
    page = visit.open("#training")
    expect(page.get_by_text("trigger word <img")).to_be_visible()
    page.get_by_role("link", name=JOB).click()
    expect(page.get_by_text("<b>bold</b>").first).to_be_visible()
    assert page.locator("img[src='x'], main b, main script").count() == 0
    assert page.title() != "run"
