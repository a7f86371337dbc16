"""TLS to PostgreSQL: the parameters of the database URL reach the connection, and mean what they say."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve_app.jobs.database import Database
from serve_app.jobs.database_tls import split_tls
from tests.postgres import PostgresServer
from tests.postgres_tls import tls_port
from tests.tls import self_signed


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return self_signed(tmp_path)


def url_of(postgres: PostgresServer, address: str, port: int) -> str:
    """The URL of an empty database behind that port, without parameters."""
    name = postgres.new_database().partition("?")[0].rpartition("/")[2]
    return f"postgresql+asyncpg://postgres@{address}:{port}/{name}"


@pytest.fixture
async def tls_url(postgres: PostgresServer, certificate: Path) -> AsyncIterator[str]:
    """The URL of a server whose certificate is for this name."""
    async with tls_port(postgres, certificate) as port:
        yield url_of(postgres, "localhost", port)


async def opens(url: str) -> None:
    """Opens a job database, which migrates it, and reads from it."""
    database = Database(url)
    try:
        await database.open()
        async with database.reading() as connection:
            assert await connection.scalar(sa.text("SELECT count(*) FROM requests")) == 0
    finally:
        await database.close()


@pytest.mark.parametrize("word", ["ssl", "sslmode"])
async def test_a_server_with_a_known_certificate_is_used(tls_url: str, certificate: Path, word: str) -> None:
    await opens(f"{tls_url}?{word}=verify-full&sslrootcert={certificate}")


async def test_tls_without_a_check_is_possible(tls_url: str) -> None:
    await opens(f"{tls_url}?sslmode=require")


async def test_an_unknown_certificate_is_refused(tls_url: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = self_signed(tmp_path / "other")
    with pytest.raises(OSError, match="certificate verify failed"):
        await opens(f"{tls_url}?sslmode=verify-full&sslrootcert={other}")
    with pytest.raises(OSError, match="certificate verify failed"):
        await opens(f"{tls_url}?sslmode=verify-full&sslrootcert=system")


async def test_a_certificate_of_another_name_is_refused_only_by_verify_full(
    postgres: PostgresServer, certificate: Path
) -> None:
    # The certificate names 127.0.0.1.
    async with tls_port(postgres, certificate, "127.0.0.2") as port:
        url = f"{url_of(postgres, '127.0.0.2', port)}?sslrootcert={certificate}"
        with pytest.raises(OSError, match="certificate verify failed: IP address mismatch"):
            await opens(f"{url}&sslmode=verify-full")
        await opens(f"{url}&sslmode=verify-ca")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sslmode=yes", "needs sslmode=disable"),
        ("sslrootcert=/etc/ca.pem", "needs sslmode=disable"),
        ("sslmode=require&sslrootcert=/etc/ca.pem", "needs sslmode=verify-full"),
        ("sslmode=verify-full&sslrootcert=/no/file.pem", "/no/file.pem is no readable file"),
    ],
)
def test_a_wrong_parameter_is_named(query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Database(f"postgresql+asyncpg://edits@db.example.com/edits?{query}")


def test_other_parameters_stay() -> None:
    url = sa.make_url("postgresql+asyncpg://edits@/edits?host=/run/postgresql&ssl=require")
    assert split_tls(url) == (sa.make_url("postgresql+asyncpg://edits@/edits?host=/run/postgresql"), {"ssl": "require"})
