"""Downloading one adapter file, from a file system or from an http(s) URL that a client named."""

import asyncio
from typing import BinaryIO

from serve_app.config import FetchConfig
from serve_app.errors import FetchFailed, LoraChanged
from serve_app.storage.fetch import Fetcher
from serve_app.storage.identity import fingerprint, identity, open_store
from serve_app.storage.os_errors import as_os_errors
from serve_app.tasks import AdapterUse

CHUNK_BYTES = 16 * 2**20


def download(use: AdapterUse, file: BinaryIO, config: FetchConfig) -> None:
    """Append the rest of the adapter to `file`, which holds its beginning or nothing. Blocks.

    Raises LoraChanged for a file that is not the one that was admitted, FetchFailed and OSError.
    """
    if use.version:
        asyncio.run(_download_from_server(use, file, config))
    else:
        _copy_from_store(use, file)


def refuse_changed(use: AdapterUse, found: str) -> None:
    """Raise LoraChanged unless the identity that was found is the adapter's."""
    if found != use.id:
        raise LoraChanged(
            f"the LoRA file {use.path!r} was changed after the request was accepted", {"lora_path": use.path}
        )


def _copy_from_store(use: AdapterUse, file: BinaryIO) -> None:
    filesystem, path = open_store(use.url)
    refuse_changed(use, fingerprint(use.url))
    with as_os_errors():
        size = filesystem.size(path)
    if file.tell() > size:
        file.truncate(0)
        file.seek(0)
    while (start := file.tell()) < size:
        with as_os_errors():
            chunk = filesystem.cat_file(path, start=start, end=min(start + CHUNK_BYTES, size))
        file.write(chunk)
    file.flush()
    # A file that was overwritten meanwhile would be a mix of two revisions.
    refuse_changed(use, fingerprint(use.url))


async def _download_from_server(use: AdapterUse, file: BinaryIO, config: FetchConfig) -> None:
    """Download until the end. A connection that breaks off is replaced if it transferred at least one byte."""
    fetcher = Fetcher(config)
    try:
        async with asyncio.timeout(config.lora_timeout_s):
            while True:
                before = file.tell()
                try:
                    return await _continue(fetcher, use, file)
                except FetchFailed:
                    if file.tell() <= before:
                        raise
    except TimeoutError as error:
        raise FetchFailed(f"its server took longer than {config.lora_timeout_s:g} s") from error
    finally:
        await fetcher.close()


async def _continue(fetcher: Fetcher, use: AdapterUse, file: BinaryIO) -> None:
    # From the last byte that is present: a server refuses a range that starts behind the end.
    start = max(file.tell() - 1, 0)
    async with fetcher.follow(use.url, start, use.version) as (remote, chunks):
        if remote.size is None:
            raise FetchFailed("its server no longer says how long it is")
        # An answer with a part of the requested version need not repeat the version.
        refuse_changed(use, identity(use.url, remote.size, remote.version or (use.version if remote.start else "")))
        if file.tell() > remote.start:
            file.seek(remote.start)
            file.truncate()
        async for chunk in chunks:
            file.write(chunk[: remote.size - file.tell()])
        file.flush()
    if file.tell() < remote.size:
        raise FetchFailed("its server sent less of it than it has")
