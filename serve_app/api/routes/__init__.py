"""The routes, one module per subject. Each module has `router(service)`.

A new route goes into the module of its subject. `create_app` in `api/app.py` lists the modules. All routes but
`PUBLIC_PATHS` in `api/access.py` and the playground's files need a key when the service has keys.
"""
