"""How the trained miniature was made: its parts, its pictures, its instructions, its training."""
