"""Builds the documentation into out/site, strictly: `make docs`.

Writes docs/api.md and docs/openapi.json first, which the application describes. Ends with exit code 1 if a link, an
anchor or a page is missing, or if a page would load something from another host.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tools.api_page import api_page, openapi_document

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
SITE = REPOSITORY / "out/site"
# Pages that another page links to instead of the navigation.
LINKED_FOLDERS = ("decisions",)
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//"""
)


def main() -> None:
    document = openapi_document(REPOSITORY)
    (DOCS / "openapi.json").write_text(json.dumps(document, indent=2))
    (DOCS / "api.md").write_text(api_page(document))
    problems = list(navigation_problems())
    if problems:
        sys.exit("\n".join(problems))
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=REPOSITORY, check=False
    )
    if built.returncode:
        sys.exit(built.returncode)
    problems = list(foreign_hosts())
    if problems:
        sys.exit("\n".join(problems))


def navigation_problems() -> Iterator[str]:
    """Pages that the navigation names and that are missing, and pages that it does not name."""
    config = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    named = set(_pages(config["nav"]))
    present = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    for page in sorted(named - present):
        yield f"mkdocs.yml names {page}, which is not in docs/"
    for page in sorted(present - named):
        if not page.startswith(tuple(f"{folder}/" for folder in LINKED_FOLDERS)):
            yield f"docs/{page} is not in the navigation of mkdocs.yml"


def foreign_hosts() -> Iterator[str]:
    """Built pages that load a script, a style or an image from another host."""
    for page in sorted(SITE.rglob("*.html")):
        for found in LOADED.findall(page.read_text()):
            yield f"{page.relative_to(SITE)} loads from another host: {found}"


def _pages(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for inner in node.values():
            yield from _pages(inner)
    else:
        for inner in node:
            yield from _pages(inner)


if __name__ == "__main__":
    main()
