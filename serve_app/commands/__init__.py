"""The command `edits-server`, one module per sub-command and what they share."""
