"""One thread's sessions with the store: one a tenant, for tenants do not see each other's blocks."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Final

from shoal.kv_client import KvClient, KvClientOptions
from shoal.model_worker.tenants import Account, Accounts

MAX_TENANTS: Final = 8
"""Sessions a thread keeps open. A store takes 256 by default: three threads each of ten workers."""
_FINGERPRINT_DOMAIN: Final = b"shoal.kv.payload.v1"


class Sessions:
    """Belongs to one thread; `problem` may be read by any."""

    def __init__(self, options: KvClientOptions, accounts: Accounts, max_tenants: int = MAX_TENANTS) -> None:
        """options: of all sessions; tenant and token in them are replaced."""
        self._options = options
        self._accounts = accounts
        self._max_tenants = max_tenants
        self._clients: OrderedDict[str, KvClient] = OrderedDict()
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
        return client

    def may_begin(self, tenant: str, key: bytes) -> bool:
        """Whether the store may have a chain that begins with a key; True where that is not known. From any thread."""
        client = self._clients.get(tenant)
        return client is None or client.may_begin(key)

    def note(self, client: KvClient) -> None:
        """Brings `problem` up to date after a call."""
        self.problem = client.problem
        self.used_s = time.monotonic()

    def close(self) -> None:
        """Ends all sessions."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def fingerprint_of(model_digest: str, kv_layout: str, codec: str = "none") -> bytes:
    """What makes payloads exchangeable, 32 bytes. kv_layout: the layout's name, with its sizes and dtype."""
    digest = hashlib.sha256(_FINGERPRINT_DOMAIN)
    for part in (model_digest.encode(), kv_layout.encode(), codec.encode()):
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(part)
    return digest.digest()
