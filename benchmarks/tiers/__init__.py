"""What the levers of tiers lose on the trained miniature, and what they gain at the published size."""
