"""What goes wrong with a store. Nothing of it leaves a `KvClient`."""

from __future__ import annotations


class LinkBroken(Exception):
    """The store is away, too slow, or does not speak this protocol. The link is of no use any more."""


class Refused(Exception):
    """The store said no; the link is fine."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
