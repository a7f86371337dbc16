"""The service on several machines: a Ray cluster whose nodes are machines of a drill's network, and its database.

There are a head without replicas, three nodes, each with a proxy, an ingress and an editor, and a machine for
PostgreSQL. The head's state is in RocksDB on a volume, or in Redis on a machine of its own, as with KubeRay's
`gcsFaultToleranceOptions`, so that a new head continues with it. Editors use the timed engine. Artifact storage is a
folder that all machines share.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from benchmarks.drill.network import Machine, make_lan
from benchmarks.drill.notes import EDITOR_FILES, Notes
from benchmarks.drill.service import ROOT, DrillFailed, serve_config
from benchmarks.drill.verdict import REDIS
from tests.postgres import PostgresServer

NODES = 3
GCS_PORT, HTTP_PORT = 6379, 8000
START_TIMEOUT_S = 200
# The lease is that of the other drill. Default time limits are for edits that take half a minute and may compile first.
# `max_attempts` keeps its default: a fault that costs three attempts fails the drill.
JOBS = {"lease_s": 3, "stall_s": 10, "silence_s": 6}
REDIS_PORT, REDIS_PASSWORD = 6390, "drill"
# Where the head's state may be.
ROCKSDB = "rocksdb"
HEAD_STATES = (ROCKSDB, REDIS)
# A machine whose Ray has ended is replaced after this time (s), as when a pod is rescheduled or a machine reboots.
REPLACED_AFTER_S = 5


class Cluster:
    """`async with Cluster(folder) as cluster: await cluster.start()`, in the namespaces of `network.isolated`.

    A machine whose Ray has ended is replaced by an empty one of the same address.
    """

    def __init__(self, folder: Path, head_state: str = ROCKSDB) -> None:
        self.folder = folder
        self._head_state = head_state
        self.notes = Notes(folder / "notes")
        self._storage = folder / "artifacts"
        self._storage.mkdir()

    async def __aenter__(self) -> Self:
        make_lan()
        self._stack = ExitStack()
        self.head = self._machine("head", 1)
        self.nodes = [self._machine(f"node-{number}", 1 + number) for number in range(1, NODES + 1)]
        if self._head_state == REDIS:
            self.redis = self._machine("redis", 99)
            self.start_redis()
        self.database = self._machine("database", 100)
        with self.database.inside():
            self.postgres = self._stack.enter_context(PostgresServer(address=self.database.address))
        # The drill itself connects through a socket, which also works while the machine is cut off.
        self.local_database_url = self.postgres.new_database()
        name = self.local_database_url.partition("@/")[2].partition("?")[0]
        self.database_url = f"postgresql+asyncpg://postgres@{self.database.address}/{name}"
        (self.folder / "serve_config.yaml").write_text(yaml.safe_dump(self._config()))
        self._replacing = [asyncio.create_task(self._keep_up(machine)) for machine in (self.head, *self.nodes)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._replacing:
            task.cancel()
        for machine in (*self.nodes, self.head, *([self.redis] if self._head_state == REDIS else [])):
            machine.kill()
        self._stack.close()

    def _machine(self, name: str, number: int) -> Machine:
        machine = Machine(name, number, self.folder / "disks" / name)
        # Each machine has its own mount of the storage.
        subprocess.run(machine.command("mount", "--bind", str(self._storage), str(self._storage)), check=True)
        return machine

    def set_storage_writable(self, writable: bool) -> None:
        """Allow or forbid the nodes to write to artifact storage. Where it is forbidden, writes fail at once."""
        options = f"remount,bind,{'rw' if writable else 'ro'}"
        for node in self.nodes:
            subprocess.run(node.command("mount", "-o", options, str(self._storage)), check=True)

    @property
    def urls(self) -> list[str]:
        return [f"http://{node.address}:{HTTP_PORT}" for node in self.nodes]

    async def start(self) -> None:
        """Start the service; returns when every node serves. Raises DrillFailed if one does not."""
        # This command waits for the head.
        self._run(self.head, "serve", "run", "--non-blocking", str(self.folder / "serve_config.yaml"))
        await self.until_whole()

    async def _keep_up(self, machine: Machine) -> None:
        """Start Ray on a machine again whenever it has ended. A head continues with the state on its volume."""
        role = [f"--address={self.head.address}:{GCS_PORT}", "--num-cpus=1"]
        if machine is self.head:
            role = ["--head", f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=false"]
            if self._head_state == REDIS:
                role.append(f"--redis-password={REDIS_PASSWORD}")
        memory = f"--object-store-memory={100 * 2**20}"
        command = ["ray", "start", "--block", f"--node-ip-address={machine.address}", memory, *role]
        while True:
            process = self._run(machine, *command)
            while process.poll() is None:
                await asyncio.sleep(0.1)
            machine.kill()
            await asyncio.sleep(REPLACED_AFTER_S)
            machine.empty()

    def start_redis(self) -> None:
        """Start Redis with the options of cluster/kuberay/base/redis.yaml. It continues with what is on its disk."""
        data = self.folder / "redis"
        data.mkdir(exist_ok=True)
        options = {"bind": self.redis.address, "port": REDIS_PORT, "dir": data, "requirepass": REDIS_PASSWORD}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self.folder / "log-redis").open("ab") as log:
            subprocess.Popen(self.redis.command("redis-server", *words), stdout=log, stderr=log)

    def _state_variables(self) -> dict[str, str]:
        """The variables by which the head finds its state. KubeRay sets the same."""
        if self._head_state == ROCKSDB:
            return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.folder / "gcs")}
        return {
            "RAY_REDIS_ADDRESS": f"{self.redis.address}:{REDIS_PORT}",
            "RAY_external_storage_namespace": "drill",
        }

    def _run(self, machine: Machine, *command: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            # Each node's memory monitor would see the whole host's memory, and kill workers for what others use.
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_ADDRESS": f"{self.head.address}:{GCS_PORT}",
            **(self._state_variables() if machine is self.head else {}),
        }
        # The program next to this interpreter, independent of the PATH.
        program = str(Path(sys.executable).with_name(command[0]))
        with (self.folder / f"log-{machine.name}").open("ab") as log:
            return subprocess.Popen(machine.command(program, *command[1:]), stdout=log, stderr=log, env=environment)

    def editor(self, node: Machine) -> int | None:
        """The process id of the editor on a node; None until its engine is loaded."""
        return next((pid for pid in node.pids() if (self.folder / EDITOR_FILES / str(pid)).exists()), None)

    def node_of(self, pid: int) -> Machine | None:
        return next((node for node in self.nodes if pid in node.pids()), None)

    async def until_whole(self, replaced: int | None = None) -> float:
        """Wait until every node answers and has an editor other than the process `replaced`. Returns the time."""
        deadline = time.monotonic() + START_TIMEOUT_S
        async with httpx.AsyncClient(timeout=2) as client:
            while not all([await self._is_whole(client, node, replaced) for node in self.nodes]):
                if time.monotonic() > deadline:
                    raise DrillFailed(f"the cluster was not whole after {START_TIMEOUT_S} s:\n{self.ends_of_logs()}")
                await asyncio.sleep(0.2)
        return time.time()

    async def _is_whole(self, client: httpx.AsyncClient, node: Machine, replaced: int | None) -> bool:
        if self.editor(node) in (None, replaced):
            return False
        try:
            return (await client.get(f"http://{node.address}:{HTTP_PORT}/ready")).status_code == 200
        except httpx.TransportError:
            return False

    def ends_of_logs(self) -> str:
        logs = sorted(self.folder.glob("log-*"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs)

    def set_slow(self, machines: Sequence[Machine]) -> None:
        """Make the editors of these machines, and no others, five times slower from the next edit on."""
        (self.folder / "slow").write_text("".join(f"{machine.address}\n" for machine in machines))

    def _config(self) -> dict[str, Any]:
        # One ingress and one editor per node.
        replicas = {"num_replicas": NODES, "max_replicas_per_node": 1}
        config = serve_config(
            {"host": "0.0.0.0", "port": HTTP_PORT},
            "benchmarks.drill.timed:build",
            self.folder,
            {"database_url": self.database_url, **JOBS},
            replicas,
            replicas,
        )
        return {"proxy_location": "EveryNode", **config}
