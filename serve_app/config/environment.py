"""What the configuration takes from the environment: variables in URLs, secrets, and whether spans are wanted.

No other room reads the environment.
"""

import os
import re
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

# An environment variable, as a config names it.
VARIABLE = re.compile(r"\$\{(\w+)\}")


def expand_variables(text: str) -> str:
    """`text` with each `${NAME}` replaced by that environment variable.

    Raises ValueError that names a variable which is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]

    return VARIABLE.sub(value, text)


def expand_url(url: str) -> str:
    """`url` with its variables expanded. Raises ValueError if it contains a literal password: Serve logs the config."""
    parts = urlsplit(url)
    passwords = (parts.password, *parse_qs(parts.query).get("password", []))
    if any(password and not VARIABLE.search(password) for password in passwords):
        raise ValueError("put the password into an environment variable and write ${ITS_NAME} here: Serve logs this")
    return expand_variables(url)


def read_secret(value: Any) -> Any:
    """The value of the environment variable that the config names. A SecretStr, which only code has, stays as it is."""
    if not isinstance(value, str):
        return value
    if not VARIABLE.fullmatch(value):
        raise ValueError("put the secret into an environment variable and write ${ITS_NAME} here: Serve logs this")
    return expand_variables(value)


def wants_spans() -> bool:
    """Whether OpenTelemetry's standard variables name an endpoint for spans. Its SDK reads the rest of them."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(os.environ.get(name) for name in endpoints) and os.environ.get("OTEL_TRACES_EXPORTER") != "none"


Url = Annotated[str, AfterValidator(expand_url)]
Secret = Annotated[SecretStr, BeforeValidator(read_secret)]
