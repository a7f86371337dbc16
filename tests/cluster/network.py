"""What NetworkPolicies let through: a policy that selects a pod closes what no rule opens."""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.manifests import Manifest

# The namespace that the manifests are applied to.
HOME = "edits"


@dataclass(frozen=True)
class Peer:
    """A pod in a namespace, or an address outside of the cluster."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def reaches(policies: list[Manifest], source: Peer, target: Peer, port: int) -> bool:
    """Whether a connection passes both the rules of its source and those of its target."""
    return _passes(policies, "Egress", source, target, port) and _passes(policies, "Ingress", target, source, port)


def _passes(policies: list[Manifest], direction: str, pod: Peer, other: Peer, port: int) -> bool:
    if pod.namespace != HOME:
        return True
    specs = [policy["spec"] for policy in policies]
    closing = [s for s in specs if direction in s["policyTypes"] and _selects(s["podSelector"], pod.labels)]
    if not closing:
        return True
    rules = [rule for spec in closing for rule in spec.get(direction.lower(), [])]
    return any(_opens(rule, "to" if direction == "Egress" else "from", other, port) for rule in rules)


def _opens(rule: dict[str, Any], peers: str, other: Peer, port: int) -> bool:
    ports = [entry["port"] for entry in rule.get("ports", [])]
    return (not ports or port in ports) and (peers not in rule or any(_matches(peer, other) for peer in rule[peers]))


def _matches(peer: dict[str, Any], other: Peer) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        closed = [ipaddress.ip_network(inner) for inner in block.get("except", [])]
        if not other.address:
            return False
        address = ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(address in inner for inner in closed)
    if other.address:
        return False
    if "namespaceSelector" in peer:
        named = {"kubernetes.io/metadata.name": other.namespace}
        if not _selects(peer["namespaceSelector"], named):
            return False
    elif other.namespace != HOME:
        return False
    return _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions", []))


def _holds(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    if expression["operator"] != "NotIn":
        raise AssertionError(f"unknown operator {expression['operator']}")
    return labels.get(expression["key"]) not in expression["values"]
