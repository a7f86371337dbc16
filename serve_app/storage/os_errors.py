"""Calls of file systems, local and remote: the one place that decides what counts as a failure of storage.

fsspec's remote file systems raise the errors of the client library beneath them (botocore, aiohttp, Google's and
Azure's), which have no base class in common and are no OSErrors.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import ServiceError

# Raised by wrong code, ours or the library's, and not by storage: they must not look like an outage.
PROGRAMMING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    TypeError,
)


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Raise an OSError for whatever the client library of a remote file system raises inside.

    OSErrors, FileNotFoundError among them, pass as they are; so do errors of this service and programming errors.
    """
    try:
        yield
    except (OSError, ServiceError, *PROGRAMMING_ERRORS):
        raise
    except Exception as error:
        raise OSError(f"the file system raised {type(error).__name__}") from error
