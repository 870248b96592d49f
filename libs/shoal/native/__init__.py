"""Compiles small C libraries on first use, into a per-user cache, and keeps them there.

Why at first use and why C: docs/adr/0003-native-cpu-ops.md. Whoever has C sources describes them as a `Library`, loads
the file that `build` returns with ctypes, and has a slower way of its own for machines without a compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

COMPILE_TIMEOUT_S = 180


class NativeBuildError(Exception):
    """The native library cannot be had here; the message says why and what to do about it."""


@dataclass(frozen=True, slots=True)
class Library:
    """What to compile. Files are relative to `folder`."""

    name: str
    """First part of the file's name."""
    cache: str
    """The folder below the cache directory."""
    folder: Path
    sources: tuple[str, ...]
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler: the argument list that starts it, and what tells it from another one."""

    command: tuple[str, ...]
    identity: str


def find_compiler() -> Compiler:
    """$CC if set, else the first of cc, gcc, clang on the PATH.

    Raises NativeBuildError if there is none.
    """
    named = os.environ.get("CC", "").strip()
    for candidate in [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]:
        program = shutil.which(candidate[0])
        if program is not None:
            real = Path(program).resolve()
            status = real.stat()
            return Compiler((program, *candidate[1:]), f"{real}:{status.st_size}:{status.st_mtime_ns}")
    missing = (
        f"the compiler named by CC ({named}) does not exist" if named else "there is no C compiler (cc, gcc, clang)"
    )
    raise NativeBuildError(f"{missing}; install one, for example with 'apt-get install gcc libc6-dev'")


def cache_directory(name: str) -> Path:
    """$SHOAL_CACHE_DIR/`name`, else $XDG_CACHE_HOME/shoal/`name`, else ~/.cache/shoal/`name`; made with mode 0700.

    Code is loaded from here, so a directory that another user could write to is refused.
    """
    if own := os.environ.get("SHOAL_CACHE_DIR"):
        directory = Path(own) / name
    else:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / name
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise NativeBuildError(
            f"cannot make the cache directory {directory}: {error.strerror}; set SHOAL_CACHE_DIR"
        ) from None
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeBuildError(
            f"{directory} belongs to or can be written by another user; set SHOAL_CACHE_DIR elsewhere"
        )
    return directory


def cpu_identity() -> str:
    """What -march=native depends on: the architecture and, on Linux, the CPU's feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {features}"


def build(library: Library, extra_flags: tuple[str, ...] = ("-march=native",)) -> Path:
    """The path of the shared library for this machine, compiled if the cache does not have it.

    Safe to call from several processes at once: each compiles into its own file and renames it into place.
    Raises NativeBuildError.
    """
    compiler = find_compiler()
    flags = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", *extra_flags)
    digest = hashlib.sha256()
    for name in (*library.sources, *library.headers):
        digest.update((library.folder / name).read_bytes() + b"\0")
    digest.update("\0".join((*compiler.command, compiler.identity, cpu_identity(), *flags)).encode())
    target = cache_directory(library.cache) / f"{library.name}-{digest.hexdigest()[:32]}.so"
    if not target.exists():
        _compile(compiler, flags, library, target)
    return target


def _compile(compiler: Compiler, flags: tuple[str, ...], library: Library, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
        output = Path(scratch) / target.name
        sources = [str(library.folder / name) for name in library.sources]
        command = [*compiler.command, *flags, "-o", str(output), *sources, "-lm"]
        try:
            done = subprocess.run(  # noqa: S603 (an argument list; the compiler is the user's own)
                command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NativeBuildError(f"{compiler.command[0]} did not run: {error}") from None
        if done.returncode != 0 or not output.exists():
            reason = (done.stderr or done.stdout).strip()[-2000:]
            raise NativeBuildError(f"{shlex.join(command)} failed with status {done.returncode}: {reason}")
        output.chmod(0o500)
        output.replace(target)
