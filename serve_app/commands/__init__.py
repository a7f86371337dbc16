"""The command `edits-server`, with a module per sub-command and modules that these share."""
