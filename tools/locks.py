"""Writes the locks of the images, with a hash for each file: `python -m tools.locks` (needs `uv` and the internet).

The versions are those of constraints.txt, with which the tests run. The lock of the ingresses leaves out what only
editors import, so their image has no torch.
"""

import argparse
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "cluster/locks"
# Imported only by the rooms engine and pipeline: the import contract in pyproject.toml keeps it so.
EDITORS_ONLY = {"accelerate", "diffusers", "peft", "torch", "torchvision", "transformers"}
# For s3:// URLs, and for spans.
EXTRAS = ("s3", "otel")
HEADER = "# Made by `python -m tools.locks` from pyproject.toml and constraints.txt.\n"


def requirements(name: str, extras: tuple[str, ...] = EXTRAS) -> list[str]:
    """What the image `ingress` or `editor` installs: the service's dependencies and extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    if name == "ingress":
        wanted = [line for line in wanted if Requirement(line).name not in EDITORS_ONLY]
    return sorted(wanted)


def lock(uv: str, name: str, extras: tuple[str, ...] = EXTRAS) -> str:
    """The text of a lock. Raises CalledProcessError if uv finds no set of versions."""
    command = [uv, "pip", "compile", "--quiet", "-", "--constraint", str(ROOT / "constraints.txt"), "--generate-hashes"]
    options = ["--no-header", "--no-annotate", "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    wanted = "\n".join(requirements(name, extras))
    return (
        HEADER + subprocess.run([*command, *options], input=wanted, capture_output=True, text=True, check=True).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the program")
    parser.add_argument("--extras", nargs="+", default=EXTRAS, help="extras of pyproject.toml, for example gs otel")
    arguments = parser.parse_args()
    for name in ("ingress", "editor"):
        (LOCKS / f"{name}.txt").write_text(lock(arguments.uv, name, tuple(arguments.extras)))


if __name__ == "__main__":
    main()
