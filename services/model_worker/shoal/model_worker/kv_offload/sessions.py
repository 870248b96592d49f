"""One thread's sessions with the store: one a tenant, for tenants do not see each other's blocks."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from shoal.kv_client import KvClient, KvClientOptions
from shoal.model_worker.tenants import Account, Accounts

_PROBLEM_COUNTS_S: Final = 5.0
"""As long as a store that failed is left alone, at most."""
_FINGERPRINT_DOMAIN: Final = b"shoal.kv.payload.v1"


class Sessions:
    """Belongs to one thread; `problem` may be read by any."""

    def __init__(self, options: KvClientOptions, accounts: Accounts, max_tenants: int) -> None:
        """options: of all sessions; tenant and token in them are replaced. max_tenants: whose sessions stay open."""
        self._options = options
        self._accounts = accounts
        self._max_tenants = max_tenants
        self._clients: OrderedDict[str, KvClient] = OrderedDict()
        self._current: KvClient | None = None
        self.problem = ""
        """What was wrong with the store when it was last used; empty if nothing."""
        self.used_s = 0.0
        """When that was, by time.monotonic()."""

    def client(self, tenant: str) -> KvClient:
        """The session of a tenant that has an account. The one used longest ago ends when there are too many."""
        client = self._clients.get(tenant)
        account = self._accounts.find(tenant) or Account(tenant)  # it had one when the request came
        if client is not None and client.options.token != account.token:
            self._clients.pop(tenant).close()
            client = None
        if client is None:
            options = replace(self._options, tenant=account.name, token=account.token)
            client = self._clients[tenant] = KvClient(options)
            if len(self._clients) > self._max_tenants:
                self._clients.popitem(last=False)[1].close()
        self._clients.move_to_end(tenant)
        self._current = client
        return client

    @property
    def backoff_range_s(self) -> tuple[float, float]:
        """Shortest and longest time for which a store that failed is left alone."""
        return self._options.min_backoff_s, self._options.max_backoff_s

    def may_begin(self, tenant: str, key: bytes) -> bool:
        """Whether the store may have a chain that begins with a key; True where that is not known. From any thread."""
        client = self._clients.get(tenant)
        return client is None or client.may_begin(key)

    def note(self, client: KvClient) -> None:
        """Brings `problem` up to date after a call."""
        self.problem = client.problem
        self.used_s = time.monotonic()

    def fail(self, problem: str) -> None:
        """What the session was used for last came to nothing: it ends, and with it all that it holds in the store."""
        if self._current is not None:
            self._current.give_up(problem)
        self.problem = problem
        self.used_s = time.monotonic()

    def close(self) -> None:
        """Ends all sessions."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def find_problem(groups: Sequence[Sessions]) -> str:
    """What is wrong with the store: the latest problem that any thread had who used it about when it was used last.

    A store may answer questions and fail at loads. Who has not used it for long says nothing of it.
    """
    last_s = max(group.used_s for group in groups)
    recent = [group for group in groups if group.problem and last_s - group.used_s <= _PROBLEM_COUNTS_S]
    return max(recent, key=lambda group: group.used_s).problem if recent else ""


def fingerprint_of(model_digest: str, kv_layout: str, codec: str = "none") -> bytes:
    """What makes payloads exchangeable, 32 bytes. kv_layout: the layout's name, with its sizes and dtype."""
    digest = hashlib.sha256(_FINGERPRINT_DOMAIN)
    for part in (model_digest.encode(), kv_layout.encode(), codec.encode()):
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(part)
    return digest.digest()
