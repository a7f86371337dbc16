"""Sweeps: grids of requests, and what comes out of them."""
