"""Fixtures of the engine's tests.

A process that only hands out tests to others reads this file too, so torch is imported where it is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.engine.pipelines import Bench


@pytest.fixture(scope="session")
def bench() -> "Callable[..., Bench]":
    """`bench(model)` or `bench(model, dtype)`: the same one for all tests of this process."""
    from tests.engine.pipelines import bench_of

    return bench_of


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four different adapters in the trainer's format."""
    from tests.engine.pipelines import write_loras

    return write_loras(tmp_path_factory.mktemp("loras"))
