"""The results of every benchmark: rows, and the JSON document that says what they were measured on and with."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent
_NUM_CORES = len(os.sched_getaffinity(0))  # read on import, before a script pins itself to some of them


@dataclass(frozen=True, slots=True)
class Row:
    """One result: medians unless the script says otherwise. README.md says how to read each script's `ratio`."""

    name: str
    value: float
    unit: str
    peer: float | None
    """The same of what it is compared with; None where nothing is."""
    ratio: float | None


def write_results(path: Path, rows: Sequence[Row], settings: Mapping[str, object], **details: object) -> None:
    """Replaces `path` by a document of the rows, the date, the commit, the machine and the settings.

    `details` are fields of one script alone. Neither they nor `settings` may hold a path or a host's name: documents
    are published.
    """
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    commit = _describe_commit()
    document = {
        "date": date,
        "commit": commit,
        "machine": _describe_machine() | {"date": date, "commit": commit},  # where the engine's readers look for them
        "settings": dict(settings),
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document | details, indent=2) + "\n")


def _describe_machine() -> dict[str, Any]:
    """CPU, cores this process may use, memory, kernel, and the versions that numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model_names = [line for line in lines if line.startswith("model name")]
    machine = {
        "cpu": model_names[0].partition(":")[2].strip() if model_names else platform.processor(),
        "cores": _NUM_CORES,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "kernel": platform.release(),
        "avx512_bf16": any("avx512_bf16" in line for line in lines),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    return machine if torch is None else machine | {"torch": str(torch.__version__)}


def _describe_commit() -> str:
    """The short hash, with `-dirty` when tracked files other than results differ from it; `unknown` outside of git.

    SHOAL_BENCH_COMMIT says it for a tree that was copied without its history.
    """
    if commit_of_copy := os.environ.get("SHOAL_BENCH_COMMIT"):
        return commit_of_copy
    git = ["git", "-C", str(_FOLDER)]
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)results"]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, *changed], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")
