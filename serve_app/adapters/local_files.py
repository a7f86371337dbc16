"""Opening local files that other users may have created."""

import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotRegular(OSError):
    """A directory, named pipe, socket or device where a file was expected."""


def open_regular(path: Path) -> BinaryIO:
    """The regular file at `path`, open for reading; a symbolic link is followed. Raises NotRegular and other OSErrors.

    Opening never blocks. Opening a named pipe would block until somebody writes to it.
    """
    # Checked before opening, since opening some devices has an effect, and after, since it may be another file then.
    _refuse_others(path.stat())
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _refuse_others(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_others(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular("it is not a regular file")
