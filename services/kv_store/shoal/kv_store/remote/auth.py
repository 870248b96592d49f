"""How stores know each other: a secret that all of them have, or certificates (`tls`).

The secret itself never travels: a call is signed with it, and so is the answer, which names the call by its nonce. So
whoever gets hold of an address that was once a store's learns nothing and is not believed. A signed call is good once,
within `MAX_SKEW_S` of the callee's clock. This does not keep others from listening, or from altering payloads on
their way so that the checksum still fits: where the network is not trusted, use certificates.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from shoal.rpc.errors import Unauthenticated

MIN_SECRET_BYTES: Final = 16
MAX_SECRET_BYTES: Final = 4096
MAX_SKEW_S: Final = 60.0
MAX_NONCES: Final = 1 << 17
"""Calls within twice the skew that can be told apart; above it, further ones are refused."""
TIME, NONCE, MAC = "shoal-peer-time", "shoal-peer-nonce", "shoal-peer-mac"
Metadata = Sequence[tuple[str, str]]


class NotAuthentic(Exception):
    """An answer that does not come from a peer."""


def read_secret(path: str) -> bytes:
    """The secret of a file, without white space around it. Raises ValueError, OSError."""
    with Path(path).open("rb") as file:
        secret = file.read(MAX_SECRET_BYTES + 1).strip()
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(f"{len(secret)} bytes; give {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}")
    return secret


class Signer:
    """Signs and verifies calls and answers. Safe from any thread. Without a secret everything is taken as it is."""

    def __init__(self, secret: bytes | None, clock: Callable[[], float] = time.time) -> None:
        """secret: None where certificates do the work."""
        self._secret = secret
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, float] = OrderedDict()

    def sign_call(self, method: str, body: bytes) -> Metadata:
        """What to send along with a call."""
        if self._secret is None:
            return ()
        sent_at, nonce = f"{self._clock():.3f}", secrets.token_hex(16)
        return ((TIME, sent_at), (NONCE, nonce), (MAC, self._mac("call", method, sent_at, nonce, body)))

    def verify_call(self, method: str, body: bytes, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """The call's nonce, with which the answer is signed. Raises Unauthenticated."""
        if self._secret is None:
            return ""
        given = {name: str(value) for name, value in metadata}
        sent_at, nonce = given.get(TIME, ""), given.get(NONCE, "")
        expected = self._mac("call", method, sent_at, nonce, body)
        if not hmac.compare_digest(expected.encode(), given.get(MAC, "").encode()):
            raise Unauthenticated("the call is not signed with the secret of this store's peers")
        now_s = self._clock()
        if abs(now_s - float(sent_at)) > MAX_SKEW_S:
            raise Unauthenticated(f"the call was signed more than {MAX_SKEW_S:.0f} s ago, or the clocks differ")
        self._note(nonce, now_s)
        return nonce

    def sign_answer(self, method: str, body: bytes, nonce: str) -> Metadata:
        """What to send along with an answer."""
        return () if self._secret is None else ((MAC, self._mac("answer", method, "", nonce, body)),)

    def verify_answer(
        self, method: str, body: bytes, call: Metadata, trailers: Iterable[tuple[str, str | bytes]] | None
    ) -> None:
        """Raises NotAuthentic. call: what `sign_call` gave."""
        if self._secret is None:
            return
        sent: Mapping[str, str] = dict(call)
        given = {name: str(value) for name, value in trailers or ()}
        expected = self._mac("answer", method, "", sent[NONCE], body)
        if not hmac.compare_digest(expected.encode(), given.get(MAC, "").encode()):
            raise NotAuthentic("an answer is not signed with the secret of this store's peers")

    def _note(self, nonce: str, now_s: float) -> None:
        with self._lock:
            while self._seen and next(iter(self._seen.values())) < now_s - 2 * MAX_SKEW_S:
                self._seen.popitem(last=False)
            if nonce in self._seen or len(self._seen) >= MAX_NONCES:
                raise Unauthenticated("the call was sent before")
            self._seen[nonce] = now_s

    def _mac(self, kind: str, method: str, sent_at: str, nonce: str, body: bytes) -> str:
        assert self._secret is not None
        text = "\n".join((kind, method, sent_at, nonce, sha256(body).hexdigest()))
        return hmac.new(self._secret, text.encode(), sha256).hexdigest()
