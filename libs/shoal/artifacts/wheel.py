"""Takes one file out of a wheel, distrusting the archive: sizes, ratio, kind and digest are checked."""

from __future__ import annotations

import difflib
import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Final

from shoal.artifacts.cache import disk_full_named, format_bytes, require_space
from shoal.artifacts.errors import ArtifactError, ArtifactNotFound, DigestMismatch

MAX_EXPANSION: Final = 100
"""Weights shrink by less than 2; deflate can reach 1032, which only a bomb does."""
FREE_EXPANSION_BYTES: Final = 64 << 20
"""Members up to this size are extracted whatever their ratio."""
_CHUNK_BYTES: Final = 1 << 20


def extract_member(archive: Path, member: str, target: Path, *, name: str, sha256: str | None) -> str:
    """Writes `member` of the wheel at `archive` to `target` and returns its sha256.

    `name` is for messages. On any error `target` does not exist afterwards. Raises ArtifactNotFound naming similar
    members, DigestMismatch, NoSpace, or ArtifactError for a broken or dishonest archive.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            info = _find(wheel, member, name)
            require_space(target.parent, info.file_size, f"{name}: {member}")
            got = _copy(wheel, info, target, f"{name}: {member}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        target.unlink(missing_ok=True)
        raise ArtifactError(f"{name}: not a readable wheel: {error}") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    if sha256 is not None and got != sha256:
        target.unlink(missing_ok=True)
        raise DigestMismatch(f"{name}: {member}", sha256, got, "the wheel is what the index says; check the pin")
    return got


def _find(wheel: zipfile.ZipFile, member: str, name: str) -> zipfile.ZipInfo:
    try:
        info = wheel.getinfo(member)
    except KeyError:
        names = [entry for entry in wheel.namelist() if not entry.endswith("/")]
        close = difflib.get_close_matches(member, names, n=5, cutoff=0.4) or names[:10]
        raise ArtifactNotFound(
            f"{name}: no file {member!r} in the wheel; of its {len(names)} files: {', '.join(close)}"
        ) from None
    if info.is_dir():
        raise ArtifactNotFound(f"{name}: {member!r} is a folder; name one file of it")
    if info.flag_bits & 0x1:
        raise ArtifactError(f"{name}: {member!r} is encrypted")
    allowed = max(FREE_EXPANSION_BYTES, MAX_EXPANSION * info.compress_size)
    if info.file_size > allowed:
        raise ArtifactError(
            f"{name}: {member!r} expands from {format_bytes(info.compress_size)} to {format_bytes(info.file_size)}, "
            f"more than {MAX_EXPANSION} times: refused as a decompression bomb"
        )
    return info


def _copy(wheel: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, what: str) -> str:
    digest, written = hashlib.sha256(), 0
    with disk_full_named(target, what), wheel.open(info) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > info.file_size:
                raise ArtifactError(f"{what}: longer than the {info.file_size} bytes its archive announces")
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if written != info.file_size:
        raise ArtifactError(f"{what}: ended after {written} of {info.file_size} bytes")
    return digest.hexdigest()
