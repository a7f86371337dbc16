"""Bringing one adapter's file from where it lies: a file system, or an http(s) URL that a client named."""

import asyncio
from typing import BinaryIO

from serve_app.adapters.identity import fingerprint, identity, open_store
from serve_app.config import FetchConfig
from serve_app.errors import FetchFailed, LoraChanged
from serve_app.storage.fetch import Fetcher
from serve_app.storage.os_errors import as_os_errors
from serve_app.tasks import AdapterUse

CHUNK_BYTES = 16 * 2**20


def fetch(use: AdapterUse, file: BinaryIO, config: FetchConfig) -> None:
    """Go on with `file`, which holds the beginning of the adapter or nothing, to its end. Blocks.

    Raises LoraChanged for a file that is not the one that was admitted, FetchFailed and OSError.
    """
    if use.version:
        asyncio.run(_download(use, file, config))
    else:
        _copy(use, file)


def refuse_changed(use: AdapterUse, found: str) -> None:
    """Raise LoraChanged unless the identity that was found is that of the adapter."""
    if found != use.id:
        raise LoraChanged(
            f"the LoRA file {use.path!r} was changed after the request was accepted", {"lora_path": use.path}
        )


def _copy(use: AdapterUse, file: BinaryIO) -> None:
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
    # What was written over meanwhile would be of two revisions.
    refuse_changed(use, fingerprint(use.url))


async def _download(use: AdapterUse, file: BinaryIO, config: FetchConfig) -> None:
    """As long as each connection brings something, another one goes on where it broke off."""
    fetcher = Fetcher(config)
    try:
        async with asyncio.timeout(config.lora_timeout_s):
            while True:
                there = file.tell()
                try:
                    return await _follow(fetcher, use, file)
                except FetchFailed:
                    if file.tell() <= there:
                        raise
    except TimeoutError as error:
        raise FetchFailed(f"its server took longer than {config.lora_timeout_s:g} s") from error
    finally:
        await fetcher.close()


async def _follow(fetcher: Fetcher, use: AdapterUse, file: BinaryIO) -> None:
    # From the last byte that is there: a server has nothing to answer to a range behind the end.
    start = max(file.tell() - 1, 0)
    async with fetcher.follow(use.url, start, use.version) as (remote, chunks):
        if remote.size is None:
            raise FetchFailed("its server no longer says how long it is")
        # A part of the version that was asked for need not say so again.
        refuse_changed(use, identity(use.url, remote.size, remote.version or (use.version if remote.start else "")))
        if file.tell() > remote.start:
            file.seek(remote.start)
            file.truncate()
        async for chunk in chunks:
            file.write(chunk[: remote.size - file.tell()])
        file.flush()
    if file.tell() < remote.size:
        raise FetchFailed("its server sent less of it than it has")
