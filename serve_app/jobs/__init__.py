"""Durable jobs: see `store`."""
