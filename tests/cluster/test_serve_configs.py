import pytest

from tests.cluster.serve_configs import SHIPPED, VARIABLES, problems, shipped, variables


@pytest.mark.parametrize("place", SHIPPED)
def test_a_shipped_config_is_what_ray_and_the_builder_understand(place: str) -> None:
    assert variables(shipped(place)) <= VARIABLES.keys()
    assert problems(shipped(place)) == []


def test_there_are_configs() -> None:
    assert len(SHIPPED) >= 6
