"""Artifact storage, and guarded requests to other hosts."""
