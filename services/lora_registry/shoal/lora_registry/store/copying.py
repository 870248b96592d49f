"""A file into the store, hashed on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from shoal.lora_registry.errors import AdapterRefused
from shoal.lora_registry.store.disk import Disk
from shoal.lora_registry.store.records import CHUNK_BYTES, FileRecord


def copy_file(disk: Disk, source: Path, target: Path) -> FileRecord:
    """Copies what `source` has at first: raises AdapterRefused if it grows meanwhile. Raises OSError."""
    num_bytes = source.stat().st_size
    left, whole, chunks = num_bytes, hashlib.sha256(), list[bytes]()

    def read() -> Iterator[bytes]:
        nonlocal left
        with source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise AdapterRefused(f"{source.name} grew while it was read")
                whole.update(chunk)
                chunks.append(hashlib.sha256(chunk).digest())
                yield chunk

    disk.write(target, read())
    return FileRecord(num_bytes - left, whole.digest(), tuple(chunks))
