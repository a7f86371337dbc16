"""The locks of the images: the versions that the tests run with, a hash for each, and no torch in an ingress."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster.manifests import ROOT
from tools.locks import EDITORS_ONLY, LOCKS, requirements

PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)


def versions(path: Path) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in PINNED.findall(path.read_text())}


CONSTRAINTS = versions(ROOT / "constraints.txt")


@pytest.mark.parametrize("name", ["ingress", "editor"])
def test_a_lock_has_the_versions_that_the_tests_run_with(name: str) -> None:
    locked = versions(LOCKS / f"{name}.txt")
    differing = {
        package: version for package, version in locked.items() if CONSTRAINTS.get(package, version) != version
    }
    assert differing == {}
    direct = {canonicalize_name(Requirement(line).name): Requirement(line) for line in requirements(name)}
    assert direct.keys() - locked.keys() == set(), "python -m tools.locks writes the locks again"
    assert [package for package, wanted in direct.items() if locked[package] not in wanted.specifier] == []


@pytest.mark.parametrize("name", ["ingress", "editor"])
def test_every_package_of_a_lock_has_hashes(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text()
    blocks = re.split(r"\n(?=\S)", text.partition("\n")[2])
    assert len(blocks) == len(versions(LOCKS / f"{name}.txt")) > 100
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_an_ingress_has_no_torch_and_an_editor_everything() -> None:
    ingress, editor = versions(LOCKS / "ingress.txt"), versions(LOCKS / "editor.txt")
    assert ingress.keys() & (EDITORS_ONLY | {"triton"}) == set()
    assert not [package for package in ingress if package.startswith(("nvidia-", "cuda-"))]
    # An editor's image is built on the ingress': a package of another version would be installed twice.
    assert ingress.items() <= editor.items()
    assert editor.keys() >= EDITORS_ONLY
