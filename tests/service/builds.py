"""`serve_app.app:build` with the tests' engines, for declared configs. Paths in `args` are absolute."""

from ray import serve

from serve_app.app import build_application
from serve_app.config import AppConfig
from tests.service.standin import AdapterNotingEngine, NotingEngine


def timed(args: AppConfig) -> serve.Application:
    return build_application(args, NotingEngine)


def noted(args: AppConfig) -> serve.Application:
    return build_application(args, AdapterNotingEngine)
