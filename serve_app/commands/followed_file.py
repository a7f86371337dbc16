"""Changes of the config file while its service runs."""

import copy
import logging
from typing import Any

from serve_app.commands.config_file import ConfigFile, read_config_file
from serve_app.config.paths import file_version
from serve_app.errors import ConfigRefused

logger = logging.getLogger(__name__)


class FollowedFile:
    """A config file whose `user_config`s may change while its service runs; everything else needs a restart."""

    def __init__(self, file: ConfigFile) -> None:
        self._file = file
        self._version = file_version(file.path)

    def changed(self) -> ConfigFile | None:
        """The file as it is now, if its `user_config`s have changed since the last call. Otherwise None.

        A file that cannot be run, or that changes something else too, is logged once and changes nothing.
        """
        version = file_version(self._file.path)
        if version == self._version:
            return None
        self._version = version
        try:
            file = read_config_file(self._file.path)
        except ConfigRefused as error:
            logger.error("the changed config is refused, so the one before it still holds: %s", error)
            return None
        if file.raw == self._file.raw:
            return None
        if _without_user_configs(file) != _without_user_configs(self._file):
            logger.error("only a user_config can change while the service runs; restart it to apply %s", file.path)
            return None
        self._file = file
        return file


def _without_user_configs(file: ConfigFile) -> dict[str, Any]:
    """The file's content; a deployment with nothing but a `user_config` counts as not listed."""
    raw = copy.deepcopy(dict(file.raw))
    for application in raw["applications"]:
        deployments = application.pop("deployments", None) or []
        for deployment in deployments:
            deployment.pop("user_config", None)
        application["deployments"] = [each for each in deployments if each.keys() != {"name"}]
    return raw
