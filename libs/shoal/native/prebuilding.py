"""Compiles libraries for each kind of processors: `python -m shoal.native.prebuilding MODULE...`, when images are made.

All `Library`s of the modules, into the folder of this environment where `build` looks first, so that what is installed
there needs no compiler and does not wait for one.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal.native import (
    Library,
    NativeBuildError,
    compile_library,
    find_compiler,
    prebuilt_directory,
    prebuilt_path,
)
from shoal.native.targets import Target, targets_of_machine

_COMPILE_TIMEOUT_S = 1200.0
"""Several at a time, on a machine that builds other images as well."""


def prebuild(library: Library, folder: Path) -> list[Path]:
    """The files, one for each kind. Raises NativeBuildError."""
    compiler = find_compiler()
    folder.mkdir(parents=True, exist_ok=True)

    def compile_for(target: Target) -> Path:
        path = prebuilt_path(library, target, folder)
        compile_library(compiler, target.flags, library, path, _COMPILE_TIMEOUT_S)
        path.chmod(0o555)  # whoever the container runs as
        return path

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_for, targets_of_machine()))


def main(modules: Sequence[str]) -> int:
    """Exit status: 1 when a module has no library or one cannot be compiled."""
    for name in modules:
        libraries = [value for value in vars(importlib.import_module(name)).values() if isinstance(value, Library)]
        if not libraries:
            print(f"{name} has no library", file=sys.stderr)
            return 1
        for library in libraries:
            try:
                paths = prebuild(library, prebuilt_directory())
            except NativeBuildError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
            print(f"{library.name}: {len(paths)} kinds of processors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
