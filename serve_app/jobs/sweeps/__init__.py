"""Sweeps and their cells in the job database."""
