"""What can be wrong with an adapter, and with the store."""

from __future__ import annotations


class AdapterRefused(Exception):
    """Its files are none that can be served; the message names the file, what is wrong there, and what to do."""


class NoRoom(Exception):
    """The store may not grow by what an adapter needs; the message has the numbers."""


class Damaged(Exception):
    """Bytes on disk are not those that were published; the version is gone from the store."""


class NotKept(Exception):
    """No such version is in the store."""
