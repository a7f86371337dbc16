"""The command `edits`. Needs the extra `edits-client[cli]`."""
