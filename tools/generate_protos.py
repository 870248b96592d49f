"""Generates `protos/gen` from `protos/shoal` with the pinned compiler; `--check` fails if that would change anything.

Run by `make protos` and, with `--check`, by CI. Stubs come from mypy-protobuf.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "protos"
TARGET = SOURCE / "gen"
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
"""Scripts of mypy-protobuf, beside this interpreter: they need not be on PATH."""


def generate(target: Path) -> None:
    """Writes gencode and stubs for every proto below `protos/shoal` into `target` (emptied first)."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    protos = sorted(str(p.relative_to(SOURCE)) for p in (SOURCE / "shoal").rglob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"-I{SOURCE}",
        f"-I{well_known}",
        *(f"--plugin={name}={Path(sys.executable).with_name(name)}" for name in PLUGINS),
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out={target}",
        f"--mypy_grpc_out={target}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message is above")
    (target / "shoal" / "api" / "py.typed").touch()


def differences(a: Path, b: Path) -> list[str]:
    """Names of files that differ between two trees or exist in only one, relative to the trees' roots."""
    names = {p.relative_to(tree) for tree in (a, b) for p in tree.rglob("*.py*") if p.is_file() and p.suffix != ".pyc"}
    return sorted(
        str(n)
        for n in names
        if not ((a / n).exists() and (b / n).exists() and filecmp.cmp(a / n, b / n, shallow=False))
    )


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if protos/gen is out of date")
    if not parser.parse_args().check:
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch) / "gen")
        changed = differences(TARGET, Path(scratch) / "gen")
    for name in changed:
        print(f"protos/gen/{name} is out of date", file=sys.stderr)
    if changed:
        print("run `make protos` and commit the result", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
