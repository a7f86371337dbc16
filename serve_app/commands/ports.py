"""TCP ports of this machine."""

import socket

from serve_app.errors import ConfigRefused

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port on loopback that nothing listens on at the moment."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that no other process can share. Raises ConfigRefused if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of an earlier process that are still closing do not count; another listener does.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigRefused(
            f"http_options: cannot listen on {host}:{port}: {error.strerror};"
            " stop what listens there, or configure another port"
        ) from error
    return listener
