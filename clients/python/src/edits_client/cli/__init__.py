"""The command `edits`. Needs the extra `edits-client[cli]`."""

import sys

# What the extra installs, by the names of imports.
EXTRA = ("PIL", "rich", "typer")


def main() -> None:
    """Run the command, or say how to install what it needs."""
    try:
        from edits_client.cli.main import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.exit("The command edits needs the packages that this installs: pip install 'edits-client[cli]'")
    app()
