"""The records in answers have the fields that the OpenAPI document describes, and no others."""

from typing import Any

import pytest
from pydantic import BaseModel

from serve_app.schemas.records import EffectiveRecord, RuntimeRecord
from tests.closed_schema import problems
from tests.unit.test_explain import IMAGES, explained
from tests.unit.test_recorded_answers import read


@pytest.mark.parametrize(
    "changes", [{}, {"guidance_scale": 1, "sample_steps": 1}, {"profile": "trainer"}, {"exif": "apply", "seed": -1}]
)
def test_effective_record_is_as_described(client, make_body, changes):
    [record] = explained(client, make_body(ctrl_img=IMAGES[0], **changes))["effective"]
    assert problems(EffectiveRecord, record) == []


@pytest.mark.parametrize(("name", "model"), [("effective", EffectiveRecord), ("runtime", RuntimeRecord)])
def test_records_of_the_last_release_are_as_described(name, model):
    results = [row["result"] for row in read("0.2.0")["rows"]["images"] if "result" in row]
    assert len(results) > 1
    assert [problems(model, result[name]) for result in results if result[name]] == [[]] * len(results)


def test_a_field_that_nobody_described_is_a_problem():
    class Known(BaseModel):
        name: str

    class Outer(BaseModel):
        known: list[Known]

    value: dict[str, Any] = {"known": [{"name": "x"}]}
    assert problems(Outer, value) == []
    value["known"][0]["more"] = 1
    assert "more" in problems(Outer, value)[0]
