"""A remote store of whole files in memory, whose client library has error classes of its own, as botocore does."""

from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class ClientError(Exception):
    """Of a client library: no OSError."""


class RemoteStore(MemoryFileSystem):
    """Stands in for s3fs. `away` fails every call, `full` those that write; `wrong` is an error of our own making."""

    protocol: ClassVar[tuple[str, ...]] = ("s3", "s3a")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failure: ClassVar[str] = ""
    failed_writes: ClassVar[int] = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].strip("/") if "://" in path else "/" + path.strip("/")

    @classmethod
    def _read(cls) -> None:
        if cls.failure == "away":
            raise ClientError("SlowDown: https://account.store.example/secret-bucket")
        if cls.failure == "wrong":
            raise TypeError("unexpected keyword argument")

    @classmethod
    def _write(cls) -> None:
        RemoteStore.failed_writes += bool(cls.failure)
        cls._read()
        if cls.failure == "full":
            raise ClientError("QuotaExceeded")

    def info(self, path: str, **options: Any) -> Any:
        self._read()
        return super().info(path, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._read()
        return super().cat_file(path, *arguments, **options)

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._read()
        return super().find(path, *arguments, **options)

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        self._read() if mode == "rb" else self._write()
        return super()._open(path, mode, *arguments, **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self._write()
        super().pipe_file(path, value, mode)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self._write()
        super().put_file(lpath, rpath, **options)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._write()
        super().rm(path, recursive, maxdepth)

    def rm_file(self, path: str) -> None:
        self._write()
        super().rm_file(path)


class OldAzureStore(RemoteStore):
    """Stands in for adlfs before 2026: takes `mode` and does nothing about it, but obeys `overwrite`."""

    protocol: ClassVar[tuple[str, ...]] = ("abfs", "az", "abfss")

    def pipe_file(self, path: str, value: bytes, overwrite: bool = True, **options: Any) -> None:  # type: ignore[override]
        if not overwrite and path in self.store:
            raise FileExistsError(path)
        super().pipe_file(path, value)


class OddStore(RemoteStore):
    protocol: ClassVar[tuple[str, ...]] = ("odd",)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[RemoteStore]:
    """Have URLs of remote stores lead to these, empty and in order, until the test has ended."""
    for kind in (RemoteStore, OldAzureStore, OddStore):
        for protocol in kind.protocol:
            monkeypatch.setitem(_registry, protocol, kind)
        kind.clear_instance_cache()
    monkeypatch.setattr(RemoteStore, "failure", "")
    monkeypatch.setattr(RemoteStore, "failed_writes", 0)
    RemoteStore.store.clear()
    return RemoteStore
