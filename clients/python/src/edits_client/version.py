"""The version of this package, as it is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("edits-client")
except PackageNotFoundError:  # A source tree that is not installed.
    VERSION = "0"
