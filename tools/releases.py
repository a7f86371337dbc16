"""The code of earlier releases, out of git."""

import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def newest_release() -> str:
    """The newest tag, or the newest commit that changed the version in a copy of the repository without tags.

    Raises LookupError where neither is here, as in a shallow copy or without git.
    """
    tag = _git("describe", "--tags", "--abbrev=0")
    if tag:
        return tag
    is_whole = _git("rev-parse", "--is-shallow-repository") == "false"
    commit = _git("log", "-1", "--format=%H", "-G^version = ", "--", "pyproject.toml") if is_whole else ""
    if not commit:
        raise LookupError("neither a tag nor the commit of a release is here: git fetch --tags --unshallow")
    return commit


def unpack(release: str, folder: Path) -> Path:
    """The folder, in `folder`, with the code of a release. Raises CalledProcessError for an unknown one."""
    packed = folder / "release.tar"
    wanted = ["serve_app", "tests", "samples", "pyproject.toml"]
    subprocess.run(["git", "archive", f"--output={packed}", release, *wanted], cwd=ROOT, check=True)
    with tarfile.open(packed) as archive:
        archive.extractall(folder / "release", filter="data")
    return folder / "release"


def _git(*arguments: str) -> str:
    """What the command prints; nothing if it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
