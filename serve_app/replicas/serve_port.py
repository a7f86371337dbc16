"""Closes the port that Ray Serve opens in each replica to other machines."""

from typing import Any

import ray
from ray._common.network_utils import build_address, get_localhost_ip
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT

EVERY_INTERFACE = "[::]:0"


def keep_to_this_machine() -> None:
    """Make Serve listen on loopback. Call it in a deployment's constructor: Serve opens the port after that.

    Serve's gRPC server unpickles whatever it receives, asks for no token, and listens on every interface. Handles use
    it only if Serve is configured to use gRPC between deployments; this service's calls go through Ray.
    """
    # This is a private name of Ray; tests/commands/test_run.py fails when it no longer works.
    replica.add_port_to_grpc_server = add_private_port


def add_private_port(server: Any, address: str) -> int:
    """Like Ray's `add_port_to_grpc_server`, but on loopback, or on the node's own address if other nodes call it."""
    if address == EVERY_INTERFACE:
        host = ray.util.get_node_ip_address() if RAY_SERVE_USE_GRPC_BY_DEFAULT else get_localhost_ip()
        address = build_address(host, 0)
    return int(add_port_to_grpc_server(server, address))
