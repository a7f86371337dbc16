"""Who calls, as the keys file says it, and what a caller may see and do."""
