"""Turns the errors of remote file systems into OSErrors: decides what counts as a failure of storage.

fsspec's remote file systems raise the errors of their client libraries (botocore, aiohttp, Google's and Azure's),
which have no common base class and are not OSErrors.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import ServiceError

# Errors of wrong code, in this package or in a library. They must not look like an outage of storage.
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


def reason_of(error: OSError) -> str:
    """What a system's error says, with its file and without its number; another OSError's own text."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Raise an OSError for every error that the client library of a remote file system raises inside.

    OSErrors (such as FileNotFoundError), errors of this service and programming errors pass unchanged.
    """
    try:
        yield
    except (OSError, ServiceError, *PROGRAMMING_ERRORS):
        raise
    except Exception as error:
        raise OSError(f"the file system raised {type(error).__name__}") from error
