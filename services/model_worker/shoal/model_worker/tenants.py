"""What a KV store calls the tenants whose requests come here, and what proves them to it.

A worker knows tenants by their cache salts alone. With a file of tokens those that are named there use the store under
their own names, and nobody else does; without one everybody does, under a digest of the salt.
"""

from __future__ import annotations

import hashlib
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from shoal.blocks import tenant_salt

ANYBODY: Final = "default"
"""Whose requests have no salt."""
OPERATOR: Final = "*"
"""Whose token is good for what the store holds of all tenants; for its events."""
REFRESH_EVERY_S: Final = 5.0
_log = structlog.get_logger("shoal.model_worker")


class TokensProblem(Exception):
    """A file of tokens that cannot be used. Says nothing of what is in it."""


def tenant_of(cache_salt: bytes) -> str:
    """What a worker calls the tenant with this salt, which is the tenant's own and so is not told."""
    return hashlib.sha256(b"shoal.kv.tenant.v1" + cache_salt).hexdigest()[:32] if cache_salt else ANYBODY


@dataclass(frozen=True, slots=True)
class Account:
    """A tenant as the store knows it."""

    name: str
    token: str = field(default="", repr=False)


class Accounts:
    """Who may use the store. `find` may be called by any thread, `refresh` by one."""

    def __init__(self, path: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """path: of the file of tokens; empty: everybody may. Raises TokensProblem."""
        self._path = path
        self._clock = clock
        self._next_look_s = clock() + REFRESH_EVERY_S
        self._stamp = _stamp(path)
        self._accounts = _read(path) if path else {}

    def find(self, tenant: str) -> Account | None:
        """Of a tenant as `tenant_of` calls it; None when it has no token here, and so does not use the store."""
        return self._accounts.get(tenant) if self._path else Account(tenant)

    def refresh(self) -> None:
        """Reads the file again when it has changed. One that cannot be used is logged, and those of before stay."""
        now_s = self._clock()
        if not self._path or now_s < self._next_look_s:
            return
        self._next_look_s = now_s + REFRESH_EVERY_S
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._accounts = _read(self._path)
        except TokensProblem as problem:
            _log.warning("the KV store's tokens are those of before", error=str(problem))


def operator_token(path: str) -> str:
    """What proves the operator; empty when the file has none, or cannot be used, which is logged."""
    try:
        account = _read(path).get(OPERATOR) if path else None
    except TokensProblem as problem:
        _log.warning("no token of the operator", error=str(problem))
        return ""
    return account.token if account is not None else ""


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = Path(path).stat() if path else None
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_ino, status.st_size)


def _read(path: str) -> dict[str, Account]:
    """Accounts by what a worker calls their tenants; the operator's by OPERATOR."""
    try:
        entries = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise TokensProblem(f"kv_store_tokens_file {path} cannot be read: {type(error).__name__}") from None
    except tomllib.TOMLDecodeError:
        raise TokensProblem(f'kv_store_tokens_file {path} is not TOML; give lines of tenant = "token"') from None
    accounts = {}
    for number, (name, token) in enumerate(entries.items(), 1):
        if not isinstance(token, str) or not token.strip():
            raise TokensProblem(f'kv_store_tokens_file {path}, entry {number}: give tenant = "token"')
        known_as = name if name in (ANYBODY, OPERATOR) else tenant_of(tenant_salt(name))
        accounts[known_as] = Account(name, token.strip())
    return accounts
