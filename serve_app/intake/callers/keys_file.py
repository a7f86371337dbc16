"""The keys file: hashes of API keys in YAML, and what each key and each tenant may do.

Each key is 256 random bits, so that a plain SHA-256 of it is enough. An entry is a list of hashes, or says more:

    tenants:
      acme: [<SHA-256 of a key, hex>, ...]
      blue:
        keys:
          - {sha256: <SHA-256 of a key, hex>, scopes: [submit, read], expires_at: 2027-01-01T00:00:00Z}
        allow: [blue/**, "preset:poster-*"]
        limits: {submits_per_minute: 60}
    operators: [<SHA-256 of a key, hex>]
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
)

from serve_app.config import LimitsConfig, strict_yaml
from serve_app.errors import KeysRefused
from serve_app.intake.callers.allowed import Allowed
from serve_app.intake.tenants import ALL_SCOPES, Caller, Scope

MAX_TENANT_CHARS = 100
# How many characters of a hash name a key in logs and lists.
KEY_ID_CHARS = 8
# The two forms of an entry. They do not show in error messages.
SHORT, LONG = "<short>", "<long>"


def _check_sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("is not the SHA-256 of a key in 64 hex digits, lower case")
    return text


def _check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    Allowed.of(patterns)
    return patterns


def _form_of(entry: Any) -> str:
    return LONG if isinstance(entry, dict | BaseModel) else SHORT


Sha256 = Annotated[str, AfterValidator(_check_sha256)]
Tenant = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TENANT_CHARS)]


class KeyEntry(BaseModel):
    """A key. It is refused from `expires_at` on; null: never."""

    model_config = ConfigDict(extra="forbid")

    sha256: Sha256
    scopes: frozenset[Scope] = Field(ALL_SCOPES, min_length=1)
    expires_at: AwareDatetime | None = None

    @property
    def id(self) -> str:
        """What names the key in logs and lists."""
        return self.sha256[:KEY_ID_CHARS]


Key = Annotated[Annotated[Sha256, Tag(SHORT)] | Annotated[KeyEntry, Tag(LONG)], Discriminator(_form_of)]


class TenantEntry(BaseModel):
    """A tenant. `allow` names what it sees and may use; null: everything. `limits` replace those of every tenant."""

    model_config = ConfigDict(extra="forbid")

    keys: list[Key]
    limits: LimitsConfig = LimitsConfig()
    allow: Annotated[tuple[str, ...], AfterValidator(_check_patterns)] | None = None


class KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: dict[
        Tenant,
        Annotated[Annotated[list[Key], Tag(SHORT)] | Annotated[TenantEntry, Tag(LONG)], Discriminator(_form_of)],
    ] = {}
    operators: list[Key] = []

    def entries(self) -> Iterator[tuple[str | None, TenantEntry]]:
        """Each tenant with its entry, and last the operators', whose tenant is None."""
        for tenant, entry in self.tenants.items():
            yield tenant, entry if isinstance(entry, TenantEntry) else TenantEntry(keys=entry)
        yield None, TenantEntry(keys=self.operators)


@dataclass(frozen=True)
class KnownKey:
    """A key of the file, and who calls with it. It is refused from the time `expires_at` on (s since the epoch).

    `limits` are those of its tenant alone.
    """

    caller: Caller
    limits: LimitsConfig
    expires_at: float | None = None


def key_id_of(key: str) -> str:
    """What names a key in logs and lists: the beginning of its hash (hex)."""
    return hashlib.sha256(key.encode()).hexdigest()[:KEY_ID_CHARS]


def read_keys_file(path: Path) -> KeysFile:
    """Raises KeysRefused, whose message quotes no hash."""
    try:
        return KeysFile.model_validate(strict_yaml.load(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise KeysRefused(f"{path} cannot be read") from error
    except yaml.YAMLError as error:
        # The error's own text quotes the file.
        what = "has one entry twice" if isinstance(error, strict_yaml.DuplicateKey) else "is not YAML"
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        raise KeysRefused(f"{path} {what}" + (f", see its line {mark.line + 1}" if mark else "")) from None
    except ValidationError as error:
        raise KeysRefused(f"{path}: {_what_is_wrong(error)}") from None


def read_keys(path: Path) -> dict[str, KnownKey]:
    """The keys of the file, by their SHA-256 (hex). Raises KeysRefused, whose message quotes no hash."""
    known: dict[str, KnownKey] = {}
    for tenant, entry in read_keys_file(path).entries():
        for key in entry.keys:
            each = key if isinstance(key, KeyEntry) else KeyEntry(sha256=key)
            new = _known_key(tenant, entry, each)
            if each.sha256 in known:
                raise KeysRefused(f"{path}: {_listed_twice(known[each.sha256].caller, new.caller)}")
            known[each.sha256] = new
    if not known:
        raise KeysRefused(f"{path} has no keys, so nobody could use the service")
    return known


def _known_key(tenant: str | None, entry: TenantEntry, key: KeyEntry) -> KnownKey:
    caller = Caller(
        tenant or "",
        is_operator=tenant is None,
        has_key=True,
        scopes=key.scopes,
        allowed=None if entry.allow is None else Allowed.of(entry.allow),
        key_id=key.id,
    )
    return KnownKey(caller, entry.limits, key.expires_at.timestamp() if key.expires_at else None)


def _listed_twice(one: Caller, other: Caller) -> str:
    one_name, other_name = (repr(of.tenant or "operators") for of in (one, other))
    if one_name == other_name:
        return f"one key of {one_name} is listed twice"
    return f"one key belongs to {one_name} and {other_name}"


def _what_is_wrong(error: ValidationError) -> str:
    details = error.errors(include_input=False, include_context=False, include_url=False)
    return "; ".join(f"{_place(detail['loc']) or 'the file'}: {detail['msg']}" for detail in details)


def _place(parts: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in parts if part not in (SHORT, LONG))
