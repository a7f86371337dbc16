"""The port that Ray Serve opens in each replica, kept from other machines."""

from typing import Any

import ray
from ray._common.network_utils import build_address, get_localhost_ip
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT

EVERY_INTERFACE = "[::]:0"


def keep_to_this_machine() -> None:
    """To be called in a deployment's constructor, after which Serve opens the port.

    Serve's gRPC server unpickles what anybody sends and asks for no token, and it listens on every interface. Handles
    call it only if Serve was told to use gRPC between deployments; this service's calls go through Ray.
    """
    # Ray pins no name for this; tests/commands/test_run.py fails when it no longer works.
    replica.add_port_to_grpc_server = add_private_port


def add_private_port(server: Any, address: str) -> int:
    """As Ray's `add_port_to_grpc_server`, on loopback, or on the node's own address where other nodes call it."""
    if address == EVERY_INTERFACE:
        host = ray.util.get_node_ip_address() if RAY_SERVE_USE_GRPC_BY_DEFAULT else get_localhost_ip()
        address = build_address(host, 0)
    return int(add_port_to_grpc_server(server, address))
