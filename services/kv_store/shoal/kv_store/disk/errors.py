"""What can go wrong with a block on disk. To the store each of these is a miss; none is ever a wrong byte."""

from __future__ import annotations


class DiskError(Exception):
    """Base of all errors that the futures of `SegmentLog` end with."""


class Gone(DiskError):
    """The block is not on disk: never written, removed, or its segment was reclaimed. A plain miss."""


class Corrupt(DiskError):
    """The bytes are not those that were written, or not those of this key. The block is dropped and counted."""


class IoFailed(DiskError):
    """The system call failed; the block may be readable later."""


class Stalled(DiskError):
    """The I/O had no result within its deadline. The caller's memory is not touched afterwards."""


class Expired(DiskError):
    """The request was still queued when its deadline passed: the disk is behind, nothing was read or written."""


class NotAdmitted(DiskError):
    """A write that was refused to spare the disk, or a request for which no queue had room. `reason` is one word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class OutOfService(DiskError):
    """The tier, or its writing side, is out of service; the message says since which error and until when."""
