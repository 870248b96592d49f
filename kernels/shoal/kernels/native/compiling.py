"""Which C sources the CPU operations are compiled from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shoal import native

SOURCES: Final = (
    "native/threads.c",
    "rms_norm/cpu.c",
    "rope/cpu.c",
    "act_and_mul/cpu.c",
    "block_copy/cpu.c",
    "paged_attention/cpu.c",
    "linear/cpu.c",
    "decoder/cpu.c",
)
HEADERS: Final = (
    "native/operations.h",
    "native/simd.h",
    "native/threads.h",
    "paged_attention/attention.h",
    "paged_attention/tile.h",
)
LIBRARY: Final = native.Library("shoal-cpu", "kernels", Path(__file__).resolve().parent.parent, SOURCES, HEADERS)


def build(extra_flags: tuple[str, ...] = ("-march=native",)) -> Path:
    """The path of the shared library for this machine, compiled in about 3 s if the cache does not have it.

    Raises shoal.native.NativeBuildError.
    """
    return native.build(LIBRARY, extra_flags)
