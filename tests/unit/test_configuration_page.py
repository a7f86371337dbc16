"""The page of all settings is made from the config's models, and is up to date."""

import pytest

from serve_app.config import AppConfig, EditorSettings, IngressSettings, ModelConfig
from tests.conftest import ROOT
from tools.configuration_page import SECTIONS, default, page, values

SECTION_CLASSES = [section for _, section in SECTIONS.values()]


def test_committed_page_is_up_to_date():
    committed = (ROOT / "docs/configuration.md").read_text()
    assert committed == page(), "run python -m tools.configuration_page > docs/configuration.md"


@pytest.mark.parametrize("section", [AppConfig, ModelConfig, EditorSettings, IngressSettings, *SECTION_CLASSES])
def test_every_setting_has_a_description_and_a_row(section):
    written = page()
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name}"
        is_section = section is AppConfig and name in {"models", *SECTIONS}
        assert is_section or field.description in written


def test_defaults_have_units():
    assert default("keep_bytes", 100 * 2**30) == "`107374182400` (100 GiB)"
    assert default("max_bytes", 20_000_000) == "`20000000` (20 MB)"
    assert default("keep_s", 30 * 86400.0) == "`2592000` (30 days)"
    assert default("timeout_s", 10.0) == "`10`"


def test_values_have_bounds():
    properties = AppConfig.model_json_schema()["properties"]
    assert values(properties["max_prompt_chars"]) == "whole number > 0 and ≤ 100,000"
    assert values(ModelConfig.model_json_schema()["properties"]["feature_cache"]) == "number > 0 and < 1 or `null`"
