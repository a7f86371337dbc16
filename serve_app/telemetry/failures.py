"""Logs failures that the service survives. An outage of the job database does not fill the log with tracebacks."""

import logging
import sys
from typing import Any

from serve_app.errors import StoreUnavailable


def log_failure(logger: logging.Logger, message: str, *values: Any) -> None:
    """Log the exception that is being handled, with its traceback. `message` is a format for `values`.

    StoreUnavailable is one warning line without a traceback: during an outage many callers fail again and again, and
    `jobs.database` has logged the cause.
    """
    error = sys.exception()
    if isinstance(error, StoreUnavailable):
        logger.warning(f"{message}: %s", *values, error, stacklevel=2)
    else:
        logger.error(message, *values, exc_info=error, stacklevel=2)
