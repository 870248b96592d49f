"""A file of a version, read in verified pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, Self

from shoal.lora_registry.errors import Damaged
from shoal.lora_registry.store.records import CHUNK_BYTES, FileRecord


class AdapterFile:
    """Open: it can be read to its end when its version is collected meanwhile."""

    def __init__(self, opened: BinaryIO, record: FileRecord, digest: str) -> None:
        self._opened = opened
        self._digest = digest
        self.record = record

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it."""
        self._opened.close()

    def read(self, offset: int) -> bytes:
        """From `offset` to the end of its chunk, at most CHUNK_BYTES; empty at the end of the file.

        The whole chunk is verified first. Raises Damaged, OSError.
        """
        number, within = divmod(offset, CHUNK_BYTES)
        if number >= len(self.record.chunks):
            return b""
        self._opened.seek(number * CHUNK_BYTES)
        chunk = self._opened.read(CHUNK_BYTES)
        if hashlib.sha256(chunk).digest() != self.record.chunks[number]:
            raise Damaged(self._digest)
        return chunk[within:]

    def chunks(self, offset: int = 0) -> Iterator[tuple[int, bytes]]:
        """Everything from `offset` on, with the offset of each piece. Raises as `read` does."""
        while chunk := self.read(offset):
            yield offset, chunk
            offset += len(chunk)
