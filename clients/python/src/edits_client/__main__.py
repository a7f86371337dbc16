"""`python -m edits_client` is the command `edits`."""

from edits_client.cli import main

main()
