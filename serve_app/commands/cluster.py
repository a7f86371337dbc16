"""The Ray cluster that a service runs on: a new one on loopback, or one that runs already."""

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
    """Connect to the Ray cluster at `address`, or start one, for the time of the block.

    A cluster that was started here stops after the block. Raises StartFailed.
    """
    # Serve's proxies inherit these variables. By default, two proxies share one port silently, and Serve restarts a
    # proxy that needs more than five seconds to start, as on a busy machine.
    os.environ.setdefault("SERVE_SOCKET_REUSE_PORT_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    try:
        ray.init(address=address or "local", namespace=NAMESPACE)
    except ConnectionError as error:
        raise StartFailed(f"no Ray cluster answers at {address}; start one, or leave the address out") from error
    except SystemExit:
        # Ray turns a SIGTERM during its start into this.
        stop.asked = True
    stop.listen()
    try:
        if serve.status().proxies:
            raise StartFailed("Serve already runs on this cluster; use `serve deploy` there, or another cluster")
        yield
    finally:
        ray.shutdown()
