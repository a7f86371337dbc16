"""The routes, one module per subject. Each module has `router(service)`."""
