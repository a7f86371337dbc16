"""How the trained miniature was made: its parts, its images, its instructions, its training."""
