"""A port belongs to one listener."""

import socket

import pytest

from serve_app.commands.ports import free_port, listen
from serve_app.errors import ConfigRefused


def test_free_port_can_be_listened_on():
    port = free_port()
    with listen("127.0.0.1", port) as listener:
        assert listener.getsockname()[1] == port


def test_a_port_is_taken_once():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigRefused, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            listen("127.0.0.1", port)


def test_a_port_that_others_would_share_is_taken():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigRefused, match="already in use"):
            listen("127.0.0.1", other.getsockname()[1])
