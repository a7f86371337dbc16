"""The port that Serve opens in each replica is for this machine alone."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
from ray.serve._private import replica

from serve_app.replicas.serve_port import EVERY_INTERFACE, add_private_port, keep_to_this_machine


def addresses_of(port: int) -> set[str]:
    connections = psutil.Process().net_connections(kind="inet")
    return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port}


def test_the_port_that_serve_asks_for_is_opened_on_loopback():
    server = grpc.server(ThreadPoolExecutor(1))
    port = add_private_port(server, EVERY_INTERFACE)
    server.start()
    try:
        assert {address.removeprefix("::ffff:") for address in addresses_of(port)} == {"127.0.0.1"}
    finally:
        server.stop(None)


def test_serve_opens_it_this_way(monkeypatch):
    monkeypatch.setattr(replica, "add_port_to_grpc_server", replica.add_port_to_grpc_server)
    keep_to_this_machine()
    assert replica.add_port_to_grpc_server is add_private_port
