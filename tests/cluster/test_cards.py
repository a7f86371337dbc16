"""The configs for small cards: each names its card's memory and asks for the host memory that streaming needs."""

import re

import pytest
import yaml

from tests.cluster.manifests import OVERLAYS, build, only
from tests.cluster.rayservice import size
from tests.cluster.serve_configs import SHIPPED, shipped

CARDS = [place for place in SHIPPED if re.search(r"-\d+gb", place)]
# The bytes of a checkpoint in bf16 (docs/performance.md).
WEIGHTS = int(53.7 * 2**30)


def test_each_card_has_a_config_for_compose_and_an_overlay() -> None:
    found = {(name, "overlays" in place) for place in CARDS for name in re.findall(r"\d+gb", place)}
    assert found == {(name, overlay) for name in ("8gb", "24gb") for overlay in (False, True)}


@pytest.mark.parametrize("place", CARDS)
def test_config_of_a_card_streams_within_its_memory(place: str) -> None:
    [model] = yaml.safe_load(shipped(place))["applications"][0]["args"]["models"]
    assert (model["offload"], model["compile"]) == ("stream", "regional")
    assert f"-{model['device_memory_gib']}gb" in place


@pytest.mark.parametrize("overlay", [path for path in OVERLAYS if path.name.startswith("card-")], ids=lambda p: p.name)
def test_pod_of_a_card_has_the_host_memory_that_streaming_needs(overlay) -> None:
    # It imports torch, which no other test of these folders needs.
    from serve_app.engine.placement import HOST_BYTES

    service = only(build(overlay), "RayService")["spec"]
    [model] = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"]["models"]
    pod = service["rayClusterConfig"]["workerGroupSpecs"][1]["template"]["spec"]
    shared = size(pod["volumes"][0]["emptyDir"]["sizeLimit"])
    resources = pod["containers"][0]["resources"]
    assert pod["volumes"][0]["name"] == "shared-memory"
    needed = WEIGHTS + HOST_BYTES + model["adapter_cache_bytes"] + shared
    for asked in ("requests", "limits"):
        assert needed <= size(resources[asked]["memory"]) < needed + 2**30
