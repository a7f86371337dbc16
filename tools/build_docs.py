"""Builds the documentation into out/site, strictly: `make docs`.

Writes docs/api.md and docs/openapi.json first, which the application describes. Ends with exit code 1 if a link, an
anchor, a page or a file that a page names is missing, or if a page would load something from another host.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tools.api_page import api_page
from tools.openapi import openapi_document

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
SITE = REPOSITORY / "out/site"
# Pages that another page links to instead of the navigation.
LINKED_FOLDERS = ("decisions",)
REFERENCE = re.compile(r"""<(?P<tag>\w+)\b[^>]*?\s(?:href|src)=["']?(?P<target>[^"'\s>]+)""")
# A file of the repository, as pages name it: `serve_app/app.py`, or short within the package, `jobs/queue.py`.
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|cfg|lua|toml|yaml))`")
# A module of the repository that a page runs.
COMMAND = re.compile(r"python -m ((?:serve_app|benchmarks|tests|tools)[\w.]*)")
# What this command writes. Links to it are dead in the repository, so one page has them and says who writes it.
GENERATED = ("api.md", "openapi.json")
LINK_TO_GENERATED = re.compile(rf"\]\((?:\.\./)*({'|'.join(map(re.escape, GENERATED))})")
MAY_LINK_TO_GENERATED = ("api.md", "http.md")
# What readers make themselves.
NOT_COMMITTED = ("out/", "cluster/secrets/")
# Elements whose target a browser loads with the page; an `a` is followed on a click.
LOADING_TAGS = ("script", "link", "img", "iframe", "source")


def main() -> None:
    document = openapi_document()
    (DOCS / "openapi.json").write_text(json.dumps(document, indent=2))
    (DOCS / "api.md").write_text(api_page(document))
    stop_at(navigation_problems())
    stop_at(index_problems())
    stop_at(file_problems())
    stop_at(generated_problems())
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    # Its own traceback follows the list of broken links and says nothing more.
    if subprocess.run(command, cwd=REPOSITORY, check=False).returncode != 0:
        sys.exit(1)
    stop_at(site_problems())


def stop_at(problems: Iterator[str]) -> None:
    """End the command with the problems, if there are any."""
    lines = list(problems)
    if lines:
        sys.exit("\n".join(lines))


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


def index_problems() -> Iterator[str]:
    """Decision records that the list of decisions lacks, or names by another title than their own."""
    index = (DOCS / "decisions/index.md").read_text()
    for record in sorted(DOCS.glob("decisions/0*.md")):
        number, _, title = record.read_text().splitlines()[0].removeprefix("# ").partition(". ")
        entry = f"| {number} | [{title}]({record.name}) |"
        if entry not in index:
            yield f"docs/decisions/index.md lacks the line {entry}"


def file_problems() -> Iterator[str]:
    """Files and modules that a page names and that are not in the repository."""
    for page in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]:
        text = page.read_text()
        missing = [name for name in FILE.findall(text) if not name.startswith(NOT_COMMITTED) and not _is_file(name)]
        missing += [module for module in COMMAND.findall(text) if not _is_module(module)]
        for name in missing:
            yield f"{page.relative_to(REPOSITORY)} names {name}, which is not in the repository"


def generated_problems() -> Iterator[str]:
    """Links of pages to what only this command writes."""
    for page in sorted(DOCS.rglob("*.md")):
        if str(page.relative_to(DOCS)) not in MAY_LINK_TO_GENERATED:
            for name in LINK_TO_GENERATED.findall(page.read_text()):
                yield f"{page.relative_to(REPOSITORY)} links to {name}, which is not in the repository: link to http.md"


def site_problems() -> Iterator[str]:
    """Links of built pages to files that are not in the site, and what pages would load from another host."""
    for page in sorted(SITE.rglob("*.html")):
        for reference in REFERENCE.finditer(page.read_text()):
            target = reference["target"]
            parts = urlsplit(target)
            if parts.netloc:
                if reference["tag"] in LOADING_TAGS:
                    yield f"{page.relative_to(SITE)} loads from another host: {target}"
            elif not parts.scheme and parts.path and not _is_in_site(page, unquote(parts.path)):
                yield f"{page.relative_to(SITE)} links to {target}, which is not in the site"


def _is_file(name: str) -> bool:
    return (REPOSITORY / name).is_file() or (REPOSITORY / "serve_app" / name).is_file()


def _is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def _is_in_site(page: Path, path: str) -> bool:
    file = SITE / path.lstrip("/") if path.startswith("/") else page.parent / path
    if file.is_dir():
        file = file / "index.html"
    return file.is_file() and file.resolve().is_relative_to(SITE)


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
