"""The components of cluster/kuberay: each builds on each overlay, and does what its name says."""

import ipaddress
import itertools
import re
from pathlib import Path

import pytest
from ray.serve._private.constants import (
    SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
    SERVE_MULTIPLEXED_MODEL_ID,
    SERVE_SESSION_ID,
)

from serve_app.config import AppConfig
from tests.cluster import fields, rayservice
from tests.cluster.manifests import COMPONENTS, KUBERAY, OVERLAYS, ROOT, Manifest, all_of, build, build_with, only
from tests.cluster.network import Peer, reaches

# The third, many-gpus, is the base of two-models.
PLAIN = [overlay for overlay in OVERLAYS if overlay.name in ("one-gpu", "two-models")]
# The longest that an answer may take: a call of OpenAI's images API (docs/http.md).
LONGEST_S = 590


def with_component(name: str) -> list[Manifest]:
    return build_with(KUBERAY / "overlays/many-gpus", KUBERAY / "components" / name)


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda path: path.name)
@pytest.mark.parametrize("overlay", PLAIN, ids=lambda path: path.name)
def test_a_component_fits_an_overlay(overlay: Path, component: Path) -> None:
    manifests = build_with(overlay, component)
    assert manifests != build(overlay)
    assert fields.problems(manifests) == []
    service = only(manifests, "RayService")
    assert rayservice.problems(service, manifests) == []


def test_components_are_there() -> None:
    assert len(COMPONENTS) == 9
    page = (ROOT / "docs/cluster.md").read_text()
    assert [path.name for path in COMPONENTS if f"`{path.name}`" not in page] == []


def test_the_ingress_has_tls_and_lets_long_requests_live() -> None:
    ingress = only(with_component("ingress"), "Ingress")
    hosts = [rule["host"] for rule in ingress["spec"]["rules"]]
    assert [entry["hosts"] for entry in ingress["spec"]["tls"]] == [hosts]
    options = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert int(options["proxy-read-timeout"]) > LONGEST_S
    assert options["proxy-buffering"] == "off"
    assert int(options["proxy-body-size"].removesuffix("m")) * 2**20 >= AppConfig().max_body_bytes


def test_the_routes_have_tls_and_let_long_requests_live() -> None:
    manifests = with_component("gateway")
    listeners = {each["name"]: each for each in only(manifests, "Gateway")["spec"]["listeners"]}
    secure, plain = all_of(manifests, "HTTPRoute")
    assert listeners[secure["spec"]["parentRefs"][0]["sectionName"]]["tls"]["mode"] == "Terminate"
    [rule] = secure["spec"]["rules"]
    assert {minutes(value) * 60 > LONGEST_S for value in rule["timeouts"].values()} == {True}
    [redirect] = plain["spec"]["rules"]
    assert redirect["filters"][0]["requestRedirect"]["scheme"] == "https"
    assert "backendRefs" not in redirect


def minutes(duration: str) -> int:
    return int(duration.removesuffix("m"))


def spellings(header: str) -> set[str]:
    """The header with a hyphen or an underscore at each separator, which is the same header for Serve."""
    words = re.split("[-_]", header)
    choices = itertools.product("-_", repeat=len(words) - 1)
    return {"".join(itertools.chain(*zip(words, (*each, ""), strict=True))) for each in choices}


def test_the_route_drops_the_headers_that_serve_obeys() -> None:
    secure = all_of(with_component("gateway"), "HTTPRoute")[0]
    [filtered] = secure["spec"]["rules"][0]["filters"]
    obeyed = spellings(SERVE_SESSION_ID) | spellings(SERVE_MULTIPLEXED_MODEL_ID)
    obeyed |= {SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER, SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER}
    assert set(filtered["requestHeaderModifier"]["remove"]) == obeyed


def test_the_front_drops_the_same_headers() -> None:
    secure = all_of(with_component("gateway"), "HTTPRoute")[0]
    removed = secure["spec"]["rules"][0]["filters"][0]["requestHeaderModifier"]["remove"]
    pattern = re.search(r"del-header \^\((x\[.*)\)\$\$ -m reg", (ROOT / "serve_app/commands/front.cfg").read_text())
    assert pattern
    assert {bool(re.fullmatch(pattern[1], name)) for name in removed} == {True}
    assert [word for word in pattern[1].split("|") if not any(re.fullmatch(word, name) for name in removed)] == []


POLICIES = all_of(with_component("network-policies"), "NetworkPolicy")
OURS = {name: Peer(namespace="edits", labels=rayservice.pod_labels(name)) for name in ("head", "ingress", "redis")}
EDITOR = Peer(namespace="edits", labels=rayservice.pod_labels("editor-qwen-image-edit"))
PROXY = Peer(namespace="ingress-nginx")
OPERATOR = Peer(namespace="kuberay-operator", labels={"app.kubernetes.io/name": "kuberay-operator"})
PROMETHEUS = Peer(namespace="monitoring")
STRANGERS = [Peer(namespace="default"), Peer(namespace="edits", labels={"app": "other"}), Peer(address="203.0.113.5")]
# Ray's ports that run code or tell secrets, and Redis' own.
RAYS = [6379, 8265, 10001, 52365]


@pytest.mark.parametrize("pod", [*OURS.values(), EDITOR], ids=[*OURS, "editor"])
def test_strangers_reach_no_port(pod: Peer) -> None:
    for stranger in [*STRANGERS, Peer(namespace="kuberay-operator")]:
        assert [port for port in (80, 8000, 8080, *RAYS) if reaches(POLICIES, stranger, pod, port)] == []


def test_the_proxy_that_ends_tls_reaches_the_port_of_serve_alone() -> None:
    assert reaches(POLICIES, PROXY, OURS["ingress"], 8000)
    assert [port for port in (8080, *RAYS) if reaches(POLICIES, PROXY, OURS["ingress"], port)] == []


def test_operator_and_prometheus_reach_what_they_ask() -> None:
    assert reaches(POLICIES, OPERATOR, OURS["head"], 8265)
    assert reaches(POLICIES, PROMETHEUS, EDITOR, 8080)
    assert not reaches(POLICIES, PROMETHEUS, OURS["head"], 8265)


def test_the_pods_of_the_cluster_reach_each_other_and_redis_only_the_head() -> None:
    members = [OURS["head"], OURS["ingress"], EDITOR]
    assert all(reaches(POLICIES, one, other, 40_001) for one in members for other in members)
    assert [reaches(POLICIES, one, OURS["redis"], 6379) for one in members] == [True, False, False]


def test_the_service_reaches_what_it_needs_and_no_private_address_besides() -> None:
    public, database, metadata = (Peer(address=a) for a in ("93.184.216.34", "10.3.0.7", "169.254.169.254"))
    names = Peer(namespace="kube-system")
    assert reaches(POLICIES, OURS["ingress"], public, 443)
    assert reaches(POLICIES, EDITOR, public, 443)
    assert reaches(POLICIES, EDITOR, names, 53)
    assert reaches(POLICIES, OURS["ingress"], database, 5432)
    assert not reaches(POLICIES, EDITOR, database, 5432)
    assert not reaches(POLICIES, OURS["ingress"], database, 443)
    assert not reaches(POLICIES, OURS["ingress"], metadata, 80)
    assert not reaches(POLICIES, OURS["redis"], public, 443)
    with_role = all_of(with_component("google-roles"), "NetworkPolicy")
    assert reaches([*POLICIES, *with_role], EDITOR, metadata, 80)


def test_the_internet_is_open_at_public_addresses_only() -> None:
    [policy] = [policy for policy in POLICIES if policy["metadata"]["name"] == "edits-internet"]
    blocks = [to["ipBlock"] for to in policy["spec"]["egress"][0]["to"]]
    for private in ("10.0.0.1", "100.64.0.1", "172.31.9.9", "192.168.1.1", "169.254.169.254", "fd00::1", "fe80::1"):
        address = ipaddress.ip_address(private)
        for block in blocks:
            closed = [ipaddress.ip_network(inner) for inner in block["except"]]
            assert address not in ipaddress.ip_network(block["cidr"]) or any(address in each for each in closed)


def test_pods_have_a_role_and_pull_secrets_by_their_account() -> None:
    service = only(with_component("image-pull-secrets"), "RayService")["spec"]["rayClusterConfig"]
    accounts = [group["template"]["spec"]["serviceAccountName"] for group in service["workerGroupSpecs"]]
    secrets = [{"name": "edits-registry"}]
    account = only(with_component("image-pull-secrets"), "ServiceAccount")
    assert (set(accounts), account["imagePullSecrets"]) == ({account["metadata"]["name"]}, secrets)
    assert service["headGroupSpec"]["template"]["spec"]["imagePullSecrets"] == secrets
    for component, annotation in (
        ("aws-roles", "eks.amazonaws.com/role-arn"),
        ("google-roles", "iam.gke.io/gcp-service-account"),
    ):
        assert annotation in only(with_component(component), "ServiceAccount")["metadata"]["annotations"]


def test_keys_of_the_bucket_may_be_left_out() -> None:
    service = only(build(PLAIN[0]), "RayService")["spec"]["rayClusterConfig"]
    for group in [service["headGroupSpec"], *service["workerGroupSpecs"]]:
        entries = {
            entry["name"]: entry["valueFrom"]["secretKeyRef"]
            for entry in group["template"]["spec"]["containers"][0]["env"]
        }
        assert {name for name, reference in entries.items() if reference.get("optional")} == {
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        }


def test_external_secrets_make_every_secret_that_pods_need() -> None:
    manifests = with_component("external-secrets")
    made = {
        (secret["spec"]["target"]["name"], entry["secretKey"])
        for secret in all_of(manifests, "ExternalSecret")
        for entry in secret["spec"]["data"]
    }
    text = str([manifest for manifest in manifests if manifest["kind"] != "ExternalSecret"])
    needed = {(name, key) for key, name in re.findall(r"'secretKeyRef': \{'key': '([\w-]+)', 'name': '([\w-]+)'", text)}
    assert made == needed | {("edits-keys", "keys.yaml")}
    assert "'secretName': 'edits-keys'" in text
