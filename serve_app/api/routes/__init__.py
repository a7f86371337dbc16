"""The routes, one module a subject: `router(service)` is a module's."""
