"""`serve_app.app:build` with the tests' engines, for declared configs. Paths in `args` are absolute."""

from typing import TYPE_CHECKING

from ray import serve

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from tests.service.standin import NotingEngine

if TYPE_CHECKING:
    from tests.service.noted import NotedEngine


def load_noted_engine(config: ModelConfig, files: VerifiedFiles) -> "NotedEngine":
    # Serve builds in a process of its own. It imports no torch: only the editor's process, which loads, does.
    from tests.service.noted import NotedEngine

    return NotedEngine.load(config, files)


def timed(args: AppConfig) -> serve.Application:
    return build_application(args, NotingEngine)


def noted(args: AppConfig) -> serve.Application:
    return build_application(args, load_noted_engine)
