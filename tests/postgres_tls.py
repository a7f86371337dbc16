"""TLS in front of the PostgreSQL server of tests, whose programs are built without it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.postgres import PostgresServer
from tests.tls import server_context

# What a client sends first if it wants TLS: the length of the message, and the code of an SSLRequest.
SSL_REQUEST = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")


@asynccontextmanager
async def tls_port(server: PostgresServer, certificate: Path, address: str = "127.0.0.1") -> AsyncIterator[int]:
    """A port of this address where `server` answers with this certificate, and only over TLS."""
    context = server_context(certificate)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _relay(reader, writer, server.folder / ".s.PGSQL.5432", context)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(accept, address, 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Path, context: ssl.SSLContext
) -> None:
    if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
        return
    writer.write(b"S")
    await writer.drain()
    await writer.start_tls(context)
    from_server, to_server = await asyncio.open_unix_connection(server)
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(reader, to_server))
            both.create_task(_copy(from_server, writer))
    except* OSError:
        pass
    finally:
        to_server.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()
