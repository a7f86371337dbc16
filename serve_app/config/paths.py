"""Paths of a config, made absolute, and versions of the files that a running service follows."""

from pathlib import Path


def absolute(key: str, url: str, folder: Path | None) -> str:
    """A local path or `file://` URL as an absolute path; any other URL as it is.

    Raises ValueError that names `key` if the path is relative and `folder` is None, or if its home folder is unknown.
    """
    local = url.removeprefix("file://")
    if "://" in local:
        return url
    path = expand_home(key, local)
    if folder is None and not path.is_absolute():
        raise ValueError(
            f"{key}: {url!r} is relative, and the folder of the config file is not known here;"
            " write an absolute path, or start the service with `edits-server run`"
        )
    return str(path if folder is None else (folder / path).absolute())


def expand_home(key: str, path: str) -> Path:
    """`path` with `~` replaced by the home folder. Raises ValueError that names `key` if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{key}: {path!r} names a home folder that does not exist") from error


def file_version(path: Path) -> tuple[int, int, int] | None:
    """Changes with each change of the file. None while there is none, as in the middle of an editor's save."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
