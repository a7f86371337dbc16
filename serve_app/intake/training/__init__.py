"""Training jobs as clients see them, and their previews made again and compared."""
