"""Changes of the keys file: keys are added, rotated and revoked. Comments and order stay."""

import os
import tempfile
from collections.abc import Iterator, MutableMapping, MutableSequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from serve_app.errors import KeysRefused
from serve_app.intake.callers.keys_file import KEY_ID_CHARS, KeyEntry, read_keys, read_keys_file
from serve_app.intake.keys import new_key

# Nobody but the owner reads a new file.
NEW_FILE_MODE = 0o600


@dataclass(frozen=True)
class ListedKey:
    """A key of the file as people see it. `tenant` is None for operators."""

    tenant: str | None
    key: KeyEntry


def listed_keys(path: Path) -> list[ListedKey]:
    """The keys of the file, in its order. Raises KeysRefused."""
    return [
        ListedKey(tenant, key if isinstance(key, KeyEntry) else KeyEntry(sha256=key))
        for tenant, entry in read_keys_file(path).entries()
        for key in entry.keys
    ]


class KeysEdit:
    """One change of a keys file, which `save` writes in one step. The file is created if there is none."""

    def __init__(self, path: Path) -> None:
        """Raises KeysRefused for a file that cannot be used."""
        # A mounted file may be a link: its target is replaced, not the link.
        self._path = path.resolve()
        self._yaml = YAML()
        self._yaml.preserve_quotes = True
        self._yaml.width = 4096
        self._data: MutableMapping[str, Any] = {}
        if self._path.exists():
            read_keys_file(self._path)
            self._data = self._yaml.load(self._path.read_text()) or {}

    def add(self, tenant: str | None, scopes: list[str], expires_at: datetime | None) -> str:
        """Add a key behind the others of a tenant, or of operators if it is None. Returns the key."""
        key, sha256 = new_key()
        self._keys_of(tenant).append(_entry(sha256, scopes, expires_at))
        return key

    def rotate(self, key_id: str, old_ends_at: datetime) -> str:
        """Add a key like the one whose hash begins with `key_id`, which ends at a time unless it ends sooner.

        Returns the new key. Raises KeysRefused.
        """
        keys, index = self._find(key_id)
        old = keys[index]
        is_long = isinstance(old, MutableMapping)
        entry: MutableMapping[str, Any] = old if is_long else {"sha256": old}
        key, sha256 = new_key()
        keys.insert(index + 1, _entry(sha256, list(entry.get("scopes", ())), None))
        ends_at = KeyEntry.model_validate(dict(entry)).expires_at
        entry["expires_at"] = old_ends_at if ends_at is None else min(ends_at, old_ends_at)
        keys[index] = entry
        return key

    def revoke(self, key_id: str) -> None:
        """Remove the key whose hash begins with `key_id`. Raises KeysRefused."""
        keys, index = self._find(key_id)
        del keys[index]

    def save(self) -> None:
        """Replace the file. Raises KeysRefused if the new one could not be used, such as one without keys."""
        text = StringIO()
        self._yaml.dump(self._data, text)
        mode = self._path.stat().st_mode & 0o777 if self._path.exists() else NEW_FILE_MODE
        try:
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        except OSError as error:
            raise KeysRefused(f"{self._path.parent} cannot be written to") from error
        new = Path(name)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text.getvalue())
                file.flush()
                os.fsync(file.fileno())
            read_keys(new)
            new.chmod(mode)
            new.replace(self._path)
        except KeysRefused as error:
            raise KeysRefused(error.message.replace(name, str(self._path))) from None
        finally:
            new.unlink(missing_ok=True)

    def _keys_of(self, tenant: str | None) -> MutableSequence[Any]:
        if tenant is None:
            group, name = self._data, "operators"
        else:
            if self._data.get("tenants") is None:
                self._data["tenants"] = {}
            group, name = self._data["tenants"], tenant
        if group.get(name) is None:
            group[name] = []
        entry = group[name]
        keys: MutableSequence[Any] = entry["keys"] if isinstance(entry, MutableMapping) else entry
        return keys

    def _lists(self) -> Iterator[MutableSequence[Any]]:
        for tenant in self._data.get("tenants") or ():
            yield self._keys_of(tenant)
        if self._data.get("operators"):
            yield self._keys_of(None)

    def _find(self, key_id: str) -> tuple[MutableSequence[Any], int]:
        found = [
            (keys, index)
            for keys in self._lists()
            for index, key in enumerate(keys)
            if (key["sha256"] if isinstance(key, MutableMapping) else key).startswith(key_id)
        ]
        if len(found) != 1 or len(key_id) < KEY_ID_CHARS:
            what = "more than one key" if len(found) > 1 else "no key"
            raise KeysRefused(
                f"{key_id!r} names {what} of {self._path}: give at least {KEY_ID_CHARS} characters of its hash, as "
                "`edits-server keys list` shows them"
            )
        return found[0]


def _entry(sha256: str, scopes: list[str], expires_at: datetime | None) -> str | dict[str, Any]:
    """The entry of a key, in the short form if that says everything."""
    more: dict[str, Any] = {"scopes": scopes} if scopes else {}
    if expires_at is not None:
        more["expires_at"] = expires_at
    return {"sha256": sha256, **more} if more else sha256
