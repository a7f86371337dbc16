"""The generated code of the Python client is what the OpenAPI document and its own sources give."""

from tests.programs import generator
from tools import client_code


def test_models_and_sync_half_are_up_to_date():
    generator("datamodel-codegen")
    assert client_code.stale() == [], "run: python -m tools.client_code"
