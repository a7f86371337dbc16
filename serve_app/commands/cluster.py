"""The Ray cluster that a service runs on: one of its own on loopback, or one that runs already."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import serve

from serve_app.commands.signals import StopSignals
from serve_app.errors import StartFailed

NAMESPACE = "serve"


@contextmanager
def cluster(address: str | None, stop: StopSignals) -> Iterator[None]:
    """Ray for the time of the block. A cluster of our own ends with it. Raises StartFailed."""
    # Serve's proxies inherit these. Two of them on one port would share it silently, and one that starts on a busy
    # machine would be given up after five seconds.
    os.environ.setdefault("SERVE_SOCKET_REUSE_PORT_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    try:
        ray.init(address=address or "local", namespace=NAMESPACE)
    except ConnectionError as error:
        raise StartFailed(f"no Ray cluster answers at {address}; start one, or leave the address out") from error
    except SystemExit:
        # What Ray makes of a SIGTERM that comes in between.
        stop.asked = True
    stop.listen()
    try:
        if serve.status().proxies:
            raise StartFailed("Serve runs on this cluster already; use `serve deploy` there, or another cluster")
        yield
    finally:
        ray.shutdown()
