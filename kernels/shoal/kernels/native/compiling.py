"""Compiles the C sources of the CPU operations on first use, into a per-user cache.

Why at first use and why C: docs/adr/0003-native-cpu-ops.md.
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
_KERNELS = Path(__file__).resolve().parent.parent
SOURCES = (
    "native/threads.c",
    "rms_norm/cpu.c",
    "rope/cpu.c",
    "act_and_mul/cpu.c",
    "block_copy/cpu.c",
    "paged_attention/cpu.c",
    "linear/cpu.c",
    "decoder/cpu.c",
)
HEADERS = (
    "native/operations.h",
    "native/simd.h",
    "native/threads.h",
    "paged_attention/attention.h",
    "paged_attention/tile.h",
)


class NativeBuildError(Exception):
    """The native library cannot be had here; the message says why and what to do about it."""


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


def cache_directory() -> Path:
    """$SHOAL_CACHE_DIR/kernels, else $XDG_CACHE_HOME/shoal/kernels, else ~/.cache/shoal/kernels; made with mode 0700.

    Code is loaded from here, so a directory that another user could write to is refused.
    """
    if own := os.environ.get("SHOAL_CACHE_DIR"):
        directory = Path(own) / "kernels"
    else:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "kernels"
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


def build(extra_flags: tuple[str, ...] = ("-march=native",)) -> Path:
    """The path of the shared library for this machine, compiled if the cache does not have it (about 3 s).

    Safe to call from several processes at once: each compiles into its own file and renames it into place.
    Raises NativeBuildError.
    """
    compiler = find_compiler()
    flags = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", *extra_flags)
    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update((_KERNELS / name).read_bytes() + b"\0")
    digest.update("\0".join((*compiler.command, compiler.identity, cpu_identity(), *flags)).encode())
    target = cache_directory() / f"shoal-cpu-{digest.hexdigest()[:32]}.so"
    if not target.exists():
        _compile(compiler, flags, target)
    return target


def _compile(compiler: Compiler, flags: tuple[str, ...], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
        output = Path(scratch) / target.name
        sources = [str(_KERNELS / name) for name in SOURCES]
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
