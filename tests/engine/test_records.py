"""The records of a real edit have the fields that the OpenAPI document describes, and no others."""

from serve_app.schemas.records import EffectiveRecord, RuntimeRecord
from tests.closed_schema import problems
from tests.conftest import LORAS
from tests.engine.pipelines import use

LORA = LORAS / "my_lora_job/my_lora.safetensors"


def test_records_of_an_edit_are_as_described(engine, make_plan, control_png):
    edited = engine.edit(make_plan(adapters=(use(LORA, 0.5),)), [control_png])
    assert edited.runtime["adapters"]
    assert problems(RuntimeRecord, edited.runtime) == []
    assert problems(EffectiveRecord, edited.effective) == []
