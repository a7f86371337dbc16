"""The generated code of the Python client: its models from the OpenAPI document, its sync half from the async one.

    python -m tools.client_code            # writes it
    python -m tools.client_code --check    # fails if a file would change

`make generators` installs what writes the models. CONTRIBUTING.md says when to run this.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import unasync

from tools.openapi import openapi_document

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "clients/python"
PACKAGE = CLIENT / "src/edits_client"
GENERATOR = Path(sys.prefix) / "generators/bin/datamodel-codegen"
# What differs between the halves, besides `async` and `await`.
NAMES = {
    "AsyncClient": "Client",
    "AsyncJob": "Job",
    "AsyncLists": "Lists",
    "AsyncSweep": "Sweep",
    "AsyncTransport": "Transport",
    "AsyncUploads": "Uploads",
    "AsyncBaseTransport": "BaseTransport",
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
}
# `clock` has another content in each half.
WRITTEN_BY_HAND = ("clock.py",)
# What the client's models leave out: an older client must read what a newer service sends.
LIMITS = {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern"),
    *("minItems", "maxItems", "uniqueItems", "title"),
}
# What the keys of these objects say are names, which may be those of limits.
NAMED = {"properties", "schemas"}
# Fields and schemas whose values are the same in every version. Others with an `enum` may get
# further values: they are text.
FIXED_VALUES = {"status", "type"}
SYNC_HEADER = "# Generated from ../_async by `python -m tools.client_code`: change that file.\n"
MODELS_HEADER = '''# Generated from the OpenAPI document by `python -m tools.client_code`.
"""The answers of the service, field by field, as its OpenAPI document describes them."""
'''


def write_sync_half(target: Path) -> None:
    """Write the modules of the sync client into the folder `target`."""
    sources = [path for path in sorted((PACKAGE / "_async").glob("*.py")) if path.name not in WRITTEN_BY_HAND]
    rule = unasync.Rule(fromdir=f"{PACKAGE}/_async/", todir=f"{target}/", additional_replacements=NAMES)
    unasync.unasync_files([str(path) for path in sources], [rule])
    written = [target / path.name for path in sources]
    for path in written:
        text = path.read_text().replace("async client", "sync client").replace("`async with`", "`with`")
        path.write_text(SYNC_HEADER + text)
    _format(written)


def write_models(target: Path) -> None:
    """Write the module of models to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "openapi.json"
        document.write_text(json.dumps(without_limits(openapi_document())))
        command = [str(GENERATOR), "--input", str(document), "--input-file-type", "openapi", "--output", str(target)]
        options = [
            "--output-model-type=pydantic_v2.BaseModel",
            "--target-python-version=3.10",
            "--use-standard-collections",
            "--use-union-operator",
            "--use-annotated",
            "--use-schema-description",
            "--use-field-description",
            "--enum-field-as-literal=all",
            "--collapse-root-models",
            "--formatters=builtin",
            "--disable-timestamp",
        ]
        subprocess.run([*command, *options], check=True)
    _, _, code = target.read_text().partition("\n\n")
    target.write_text(MODELS_HEADER + code)
    _format([target])


def without_limits(node: Any, name: str = "") -> Any:
    """A part of the document, which is or lies in the field or schema `name`, without limits of values.

    It is also without the format of secrets, which would hide values from the client's callers.
    """
    if isinstance(node, list):
        return [without_limits(inner, name) for inner in node]
    if not isinstance(node, Mapping):
        return node
    dropped = LIMITS if name.lower() in FIXED_VALUES else LIMITS | {"enum"}
    if node.get("format") == "password":
        dropped = dropped | {"format"}
    kept = {key: without_limits(value, name) for key, value in node.items() if key not in dropped}
    for key in NAMED & node.keys():
        kept[key] = {part: without_limits(value, part) for part, value in node[key].items()}
    return kept


def _format(paths: Sequence[Path]) -> None:
    for subcommand in (["check", "--fix-only"], ["format"]):
        command = [sys.executable, "-m", "ruff", *subcommand, "--quiet", "--config", str(CLIENT / "ruff.toml")]
        subprocess.run([*command, *map(str, paths)], check=True)


def stale() -> list[str]:
    """The files of the client that would change."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        write_models(target / "models.py")
        (target / "_sync").mkdir()
        write_sync_half(target / "_sync")
        names = [str(path.relative_to(target)) for path in target.rglob("*.py")]
        return [name for name in names if (target / name).read_text() != (PACKAGE / name).read_text()]


def main() -> None:
    if "--check" not in sys.argv[1:]:
        # Needs no other program.
        write_sync_half(PACKAGE / "_sync")
        write_models(PACKAGE / "models.py")
    elif names := stale():
        raise SystemExit(f"generated code of the client is old ({', '.join(names)}): python -m tools.client_code")


if __name__ == "__main__":
    main()
