"""With its base dependencies alone, the package works, and says what its extras need."""

import subprocess
import sys

import pytest

# Imports what a user does while nothing is there but the standard library, the package and what it declares.
ONLY_BASE = """
import re, sys
from importlib.metadata import distributions, requires

def needed(name, found):
    if name not in found:
        found.add(name)
        for requirement in requires(name) or ():
            if "extra ==" not in requirement:
                try:
                    needed(canonical(re.match("[A-Za-z0-9._-]+", requirement)[0]), found)
                except ImportError:
                    pass  # Of another Python or platform.
    return found

def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()

base = needed("httpx2", needed("pydantic", set()))
others = {
    path.parts[0].removesuffix(".py")
    for each in distributions() if canonical(each.metadata["Name"]) not in base | {"edits-client"}
    for path in each.files or () if path.suffix == ".py"
}

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others - set(sys.stdlib_module_names):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
assert {"PIL", "rich", "typer"} <= others
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", ONLY_BASE + code], capture_output=True, text=True, check=False)


def test_package_imports_only_what_it_declares():
    done = run("import edits_client; edits_client.Client('http://service'); edits_client.AsyncClient('http://service')")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("code", ["import edits_client.cli; edits_client.cli.main()", "import edits_client.__main__"])
def test_command_without_its_extra_says_how_to_install_it(code):
    done = run(code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "The command edits needs the packages that this installs: pip install 'edits-client[cli]'\n"


def test_image_without_pillow_says_how_to_install_it():
    done = run(
        """
from edits_client import Image
try:
    Image.pil(Image(b"", "png", 1, 1, 1, "", 0, "", 0.0, None, []))
except ImportError as error:
    print(error)
"""
    )
    assert done.stdout == "Pillow is missing: pip install 'edits-client[pil]'\n"
