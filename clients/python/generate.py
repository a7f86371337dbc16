"""Write what is generated in this package: the sync client from the async one.

python clients/python/generate.py            # writes
python clients/python/generate.py --check    # fails if a file would change
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).parent / "src/edits_client"
NAMES = {
    "AsyncClient": "Client",
    "AsyncJob": "Job",
    "AsyncTransport": "Transport",
    "AsyncBaseTransport": "BaseTransport",
    "_async": "_sync",
    "aclose": "close",
    "aread": "read",
}
HEADER = "# Generated from ../_async by clients/python/generate.py: change that file.\n"


def sync_client(target: Path) -> None:
    """Write the sync client's modules into the folder `target`."""
    sources = [path for path in sorted((PACKAGE / "_async").glob("*.py")) if path.name != "clock.py"]
    rule = unasync.Rule(fromdir=f"{PACKAGE}/_async/", todir=f"{target}/", additional_replacements=NAMES)
    unasync.unasync_files([str(path) for path in sources], [rule])
    for path in sources:
        written = target / path.name
        text = written.read_text().replace("the async client", "the sync client").replace("`async with`", "`with`")
        written.write_text(HEADER + text)
    config = str(PACKAGE.parent.parent / "ruff.toml")
    written_files = [str(target / path.name) for path in sources]
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", "--config", config, *written_files], check=True)


def main() -> None:
    if "--check" not in sys.argv[1:]:
        sync_client(PACKAGE / "_sync")
        return
    with tempfile.TemporaryDirectory() as folder:
        sync_client(Path(folder))
        stale = [
            path.name
            for path in Path(folder).iterdir()
            if path.read_text() != (PACKAGE / "_sync" / path.name).read_text()
        ]
    if stale:
        raise SystemExit(f"the sync client is older than the async one ({', '.join(stale)}): run {__file__}")


if __name__ == "__main__":
    main()
