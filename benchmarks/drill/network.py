"""Machines for a drill: network namespaces on a bridge, each with its own address. Each can be cut off.

Everything happens in namespaces that `isolated` makes for the drill: network, processes, and mounts with /tmp in
memory. Nothing outside is seen or changed, and when the drill ends, for whatever reason, the kernel ends its processes.
This requires root (CAP_SYS_ADMIN and CAP_NET_ADMIN) on Linux.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

CLONE_NEWNET = 0x40000000
# Any private subnet: the namespace has no connection to other networks.
SUBNET = "10.77.0"
# The isolated command runs under a waiting shell, which also reaps processes that lose their parent.
ISOLATED = """
set -e
mount -t tmpfs drill /tmp
ip link set lo up
"$@"
"""

HOLD = """
mount --bind "$1" /tmp/ray
exec sleep infinity
"""


def isolated(command: Sequence[str]) -> int:
    """Run a command in its own namespaces. Returns its exit status."""
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.run([*unshare, "sh", "-c", ISOLATED, "drill", *command], check=False).returncode


class Machine:
    """A network namespace with one interface. Its /tmp/ray is the folder `disk`; all other files are shared."""

    def __init__(self, name: str, number: int, disk: Path) -> None:
        self.name = name
        self.address = f"{SUBNET}.{number}"
        self._port = f"port{number}"
        self._disk = disk
        disk.mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        self._holder = subprocess.Popen(["unshare", "--net", "--mount", "sh", "-c", HOLD, "machine", str(disk)])
        # The mount comes last.
        while not Path(f"/proc/{self._holder.pid}/root/tmp/ray").samefile(disk):
            time.sleep(0.01)
        _ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        _ip("link", "set", self._port, "master", "lan", "up")
        with self.inside():
            _ip("link", "set", "lo", "up")
            _ip("addr", "add", f"{self.address}/24", "dev", "eth0")
            _ip("link", "set", "eth0", "up")
            # Programs find their own address by the route to some other address.
            _ip("route", "add", "default", "via", f"{SUBNET}.254")

    def command(self, *command: str) -> list[str]:
        """The command line that runs a command on this machine, with its disk."""
        return ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", *command]

    @property
    def _namespace(self) -> Path:
        return _namespace_of(self._holder.pid)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Processes that this thread starts in the block use the machine's network, but not its disk."""
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(own)
        finally:
            os.close(own)
            os.close(there)

    def cut(self) -> None:
        """Cut the machine off: packets are lost, connections are not closed."""
        _ip("link", "set", self._port, "down")

    def join(self) -> None:
        _ip("link", "set", self._port, "up")

    def pids(self) -> list[int]:
        """Process ids of its living processes."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, FileNotFoundError):
                alive = process.status() != psutil.STATUS_ZOMBIE and process.pid != self._holder.pid
                if alive and _namespace_of(process.pid) == self._namespace:
                    found.append(process.pid)
        return found

    def empty(self) -> None:
        """Delete everything on its disk."""
        for child in self._disk.iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()

    def kill(self) -> int:
        """Send SIGKILL to every process on it. Returns their number."""
        killed: set[int] = set()
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(pids)
            time.sleep(0.02)
        return len(killed)


def make_lan() -> None:
    """Make the bridge that connects the machines. The drill itself has the address 254 on it."""
    _ip("link", "add", "lan", "type", "bridge")
    _ip("addr", "add", f"{SUBNET}.254/24", "dev", "lan")
    _ip("link", "set", "lan", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _namespace_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


def _enter(namespace: int) -> None:
    # os.setns comes with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
