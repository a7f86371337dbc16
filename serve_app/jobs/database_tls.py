"""TLS to PostgreSQL, as the database URL asks for it: the parameters of libpq, the way most providers write them."""

import ssl
from typing import Any

import sqlalchemy as sa

MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# The value of `sslrootcert` that stands for the certificate authorities of the operating system, as in libpq.
SYSTEM = "system"
PARAMETERS = ("ssl", "sslmode", "sslrootcert")


def split_tls(url: sa.URL) -> tuple[sa.URL, dict[str, Any]]:
    """The URL without its TLS parameters, and asyncpg's argument `ssl` that does what they say.

    `ssl` and `sslmode` mean the same. `sslrootcert` is a file of certificate authorities, or `system`. asyncpg takes
    the mode as an argument, but the file only as part of a URL, which SQLAlchemy does not hand to it.

    Raises ValueError that says which parameter is wrong.
    """
    asked = {name: url.query[name] for name in PARAMETERS if name in url.query}
    if not asked:
        return url, {}
    mode, root = asked.get("sslmode", asked.get("ssl")), asked.get("sslrootcert")
    if mode not in MODES:
        raise ValueError(f"the database URL needs sslmode={'|'.join(MODES)}, next to any sslrootcert")
    plain = url.difference_update_query(PARAMETERS)
    if root is None:
        # asyncpg looks for the authorities in PGSSLROOTCERT and ~/.postgresql/root.crt.
        return plain, {"ssl": mode}
    if mode not in ("verify-ca", "verify-full"):
        raise ValueError(f"sslrootcert in the database URL needs sslmode=verify-full; sslmode={mode} checks nothing")
    return plain, {"ssl": _context(str(root), check_name=mode == "verify-full")}


def _context(root: str, check_name: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if root == SYSTEM else root)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"sslrootcert in the database URL: {root} is no readable file of certificates") from error
    context.check_hostname = check_name
    return context
