"""`serve_app.app:build` with the tests' engines, for declared configs. Paths in `args` are absolute.

Serve builds in a process of its own, which waits for no torch: it is imported where an editor loads.
"""

from typing import TYPE_CHECKING

from ray import serve

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig

if TYPE_CHECKING:
    from tests.service.noted import NotedEngine
    from tests.service.standin import TimedEngine


def load_timed_engine(config: ModelConfig, files: VerifiedFiles) -> "TimedEngine":
    from tests.service.standin import TimedEngine

    return TimedEngine(config, files)


def load_noted_engine(config: ModelConfig, files: VerifiedFiles) -> "NotedEngine":
    from tests.service.noted import NotedEngine

    return NotedEngine.load(config, files)


def timed(args: AppConfig) -> serve.Application:
    return build_application(args, load_timed_engine)


def noted(args: AppConfig) -> serve.Application:
    return build_application(args, load_noted_engine)
