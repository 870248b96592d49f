"""Compiles small C libraries on first use, into a per-user cache, and keeps them there; where they were compiled before
(`prebuilding`, in images), takes the one for the kind of processor at hand.

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
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shoal.native.targets import Target, cpu_features, fitting

COMPILE_TIMEOUT_S = 180
_NATIVE = ("-march=native",)
_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread")


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
    flags: tuple[str, ...] = ()
    """What it needs of the compiler beside what all have."""


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


def prebuilt_directory() -> Path:
    """Where libraries of this environment are that were compiled when it was made."""
    return Path(sys.prefix) / "lib" / "shoal-native"


def prebuilt_path(library: Library, target: Target, folder: Path) -> Path:
    """Of a library for a kind of processors; another one for other sources."""
    digest = _digest(library, *_FLAGS, *library.flags, *target.flags)
    return folder / f"{library.name}-{target.name}-{digest[:32]}.so"


def find_prebuilt(library: Library, folder: Path, features: frozenset[str]) -> Path | None:
    """The best one that a processor with these features can run."""
    paths = [prebuilt_path(library, target, folder) for target in fitting(features)] if folder.is_dir() else []
    return next((path for path in paths if path.exists()), None)


def build(library: Library, extra_flags: tuple[str, ...] = _NATIVE) -> Path:
    """The path of the shared library for this machine: one that was compiled with the environment, or one of the
    cache, compiled if it is not there.

    Safe to call from several processes at once: each compiles into its own file and renames it into place.
    Raises NativeBuildError.
    """
    if extra_flags == _NATIVE:
        found = find_prebuilt(library, prebuilt_directory(), cpu_features())
        if found is not None:
            return found
    compiler = find_compiler()
    known_by = (*compiler.command, compiler.identity, cpu_identity(), *_FLAGS, *library.flags, *extra_flags)
    target = cache_directory(library.cache) / f"{library.name}-{_digest(library, *known_by)[:32]}.so"
    if not target.exists():
        compile_library(compiler, extra_flags, library, target)
    return target


def _digest(library: Library, *known_by: str) -> str:
    digest = hashlib.sha256()
    for name in (*library.sources, *library.headers):
        digest.update((library.folder / name).read_bytes() + b"\0")
    digest.update("\0".join(known_by).encode())
    return digest.hexdigest()


def compile_library(
    compiler: Compiler,
    flags: tuple[str, ...],
    library: Library,
    target: Path,
    timeout_s: float = COMPILE_TIMEOUT_S,
) -> None:
    """Into `target`, beside which it works. Raises NativeBuildError."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
        output = Path(scratch) / target.name
        sources = [str(library.folder / name) for name in library.sources]
        command = [*compiler.command, *_FLAGS, *library.flags, *flags, "-o", str(output), *sources, "-lm"]
        try:
            done = subprocess.run(  # noqa: S603 (an argument list; the compiler is the user's own)
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NativeBuildError(f"{compiler.command[0]} did not run: {error}") from None
        if done.returncode != 0 or not output.exists():
            reason = (done.stderr or done.stdout).strip()[-2000:]
            raise NativeBuildError(f"{shlex.join(command)} failed with status {done.returncode}: {reason}")
        output.chmod(0o500)
        output.replace(target)
