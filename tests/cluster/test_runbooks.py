"""The runbooks: each alert has its section, every command exists, and the threat model names tests that exist."""

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from serve_app.commands.main import app
from tests.cluster.manifests import ROOT
from tests.cluster.test_monitoring import problems as query_problems
from tests.postgres import program
from tests.programs import missing

PAGES = sorted([*ROOT.glob("docs/runbooks/*.md"), ROOT / "docs/cluster.md", ROOT / "docs/release.md"])
# Programs that are not installed here. Their names are known, their options are not checked.
FOREIGN = {
    "aws",
    "cosign",
    "cp",
    "curl",
    "cyclonedx-py",
    "docker",
    "export",
    "git",
    "helm",
    "ls",
    "mkdir",
    "ray",
    "rm",
    "sqlite3",
}
FOREIGN |= {"{", "sed"}


def alerts() -> dict[str, dict[str, str]]:
    rules = yaml.safe_load((ROOT / "cluster/monitoring/alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule["annotations"] for group in rules for rule in group["rules"]}


def test_every_alert_has_a_section_and_names_it() -> None:
    page = "docs/runbooks/alerts.md"
    headings = re.findall(r"^## (Edit\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert headings == list(alerts())
    assert {name: notes["runbook"] for name, notes in alerts().items()} == {
        name: f"{page}#{name.lower()}" for name in headings
    }


def test_a_section_says_what_to_do() -> None:
    sections = re.split(r"^## ", (ROOT / "docs/runbooks/alerts.md").read_text(), flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections if len(section.split()) < 30] == []
    assert [section.splitlines()[0] for section in sections if not re.search(r"\*\*(page|warn)\.\*\*", section)] == []


def test_the_urgency_in_a_section_is_that_of_the_alert() -> None:
    rules = yaml.safe_load((ROOT / "cluster/monitoring/alerts.yaml").read_text())["groups"]
    severities = {rule["alert"]: rule["labels"]["severity"] for group in rules for rule in group["rules"]}
    found = re.findall(r"^## (\w+)\n\n\*\*(\w+)\.", (ROOT / "docs/runbooks/alerts.md").read_text(), re.MULTILINE)
    assert dict(found) == severities


def commands(page: Path) -> list[str]:
    """The commands in the page's console blocks, lines that end with a backslash joined."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_exists(page: Path) -> None:
    found = [problem for command in commands(page) for part in parts(command) for problem in problems(part)]
    assert found == []


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 50
    assert problems("kubectl applly --kustomize cluster/kuberay/weights") != []
    assert problems("kubectl apply --kustomise cluster/kuberay/weights") != []
    assert problems("kubectl apply --kustomize cluster/kuberay/nowhere") != []
    assert problems("edits-server backup") != []
    assert problems("edits-server keys remove ab0f67ef") != []
    assert problems("edits-server keys revoke ab0f67ef --files keys.yaml") != []
    assert problems("pg_dump --formatt=custom") != []
    assert problems("python -m tests.cluster.nothing") != []


def parts(command: str) -> list[str]:
    """The commands of a line: those behind pipes, `&&` and `;` too. What stands in quotes stays together."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: "'" + re.sub(r"[|;&#]", "", quoted[0][1:-1]) + "'", command)
    plain = re.sub(r"\$\([^)]*\)|\s#.*$", "", plain)
    return [part.strip() for part in re.split(r"\|\||&&|[|;]", plain) if part.strip()]


def problems(command: str) -> list[str]:
    """What of a single command does not exist: the program, its subcommand, an option, a file."""
    words = command.split()
    program_name, rest = words[0].rpartition("/")[2], words[1:]
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    found = [f"{command}: no {path}" for path in paths(command) if not exists(path)]
    if program_name == "kubectl":
        known = kubectl_help(" ".join(leading(rest)))
        return found + [f"{command}: no {option}" for option in options if option not in known]
    if program_name in ("pg_dump", "pg_restore", "psql"):
        known = postgres_help(program_name)
        return found + [f"{command}: no {option}" for option in options if option not in known]
    if program_name == "edits-server":
        return found + edits_server_problems(rest)
    if program_name == "edits":
        return found + ([] if (Path(sys.executable).parent / "edits").exists() else [f"{command}: no edits"])
    if program_name == "python":
        return found + module_problems(rest[rest.index("-m") + 1])
    return found if program_name in FOREIGN else [*found, f"{command}: nobody knows {program_name}"]


def module_problems(module: str) -> list[str]:
    file = ROOT / module.replace(".", "/")
    there = module == "pytest" or file.with_suffix(".py").exists() or (file / "__main__.py").exists()
    return [] if there else [f"no module {module}"]


def paths(command: str) -> list[str]:
    return re.findall(r"(?<![\w./-])(?:cluster|docs|samples|tests)/[\w./*-]+", command)


def exists(path: str) -> bool:
    """`ours` is the reader's copy of an overlay; `secrets` and `loras` are folders that the reader makes."""
    return (
        "overlays/ours" in path or path.startswith(("cluster/secrets", "cluster/loras")) or bool(list(ROOT.glob(path)))
    )


def leading(words: list[str]) -> list[str]:
    """A kubectl subcommand, with its kind where it has one."""
    nested = {"create": 2 if words[1:2] != ["secret"] else 3, "config": 2}
    return words[: nested.get(words[0], 1)]


@cache
def kubectl_help(subcommand: str) -> str:
    """Its text with the options of all subcommands, or nothing if there is no such subcommand."""
    if shutil.which("kubectl") is None:
        missing("kubectl is not installed (Debian 13: kubernetes-client)")
    asked = ["kubectl", *subcommand.split(), "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    general = subprocess.run(["kubectl", "options"], capture_output=True, text=True, check=True).stdout
    return done.stdout + general if "Usage:" in done.stdout and done.returncode == 0 else ""


@cache
def postgres_help(name: str) -> str:
    return subprocess.run([program(name), "--help"], capture_output=True, text=True, check=True).stdout


def edits_server_problems(words: list[str]) -> list[str]:
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return [f"edits-server {command.name}: no {' '.join(words[:1])}"]
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [f"edits-server {command.name}: no {option}" for option in options if option not in known]


def test_queries_ask_for_what_there_is() -> None:
    texts = [page.read_text() for page in ROOT.glob("docs/runbooks/*.md")]
    queries = [query for text in texts for query in re.findall(r"```promql\n(.*?)```", text, re.DOTALL)]
    assert len(queries) >= 2
    assert [problem for query in queries for problem in query_problems(query)] == []


def test_the_threat_model_names_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs/threat-model.md").read_text())
    assert len(named) > 40
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_security_names_the_versions_that_are_supported() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    project = re.search(r'^version = "(\d+\.\d+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project
    assert f"the newest minor version ({project[1]})" in text
    assert "Report a vulnerability" in text
