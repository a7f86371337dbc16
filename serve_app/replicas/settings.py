"""The `user_config` of a deployment: settings that change in place."""

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from serve_app.config.section import faults_of

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")


class SettingsReader(Generic[Settings]):
    """Reads each `user_config` that Serve hands to a replica.

    One that cannot be read fails the replica's start. Later it changes nothing: Serve stops a running replica that
    raises an error then, and its replacement could not start.
    """

    def __init__(self, read: Callable[[dict[str, Any]], Settings]) -> None:
        """`read` raises ValidationError for a `user_config` that it cannot read."""
        self._read = read
        self._has_started = False

    def started(self) -> None:
        """The replica has started: to be called by each health check, which Serve begins after the start."""
        self._has_started = True

    def read(self, user_config: dict[str, Any]) -> Settings | None:
        """The settings, or None if the ones before still hold. Raises ValidationError during the start."""
        try:
            return self._read(user_config)
        except ValidationError as error:
            if not self._has_started:
                raise
            logger.error("the new user_config is refused, so the one before it still holds: %s", faults_of(error))
            return None
