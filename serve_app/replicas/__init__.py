"""The Ray deployments' replicas: everything that knows Ray, except `serve_app.app`."""
