"""Background tasks, threads and budgets that requests share."""
