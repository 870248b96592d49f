"""The programs of a Kubernetes control plane: those in KUBEBUILDER_ASSETS, the rest built from Go modules, once.

Builds go to `$XDG_CACHE_HOME/shoal/control-plane/` (or `~/.cache/...`), in a folder named after the pinned versions.
The first takes up to half an hour on two cores; after that it is a look into the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ASSETS_VARIABLE: Final = "KUBEBUILDER_ASSETS"
_BUILD_TIMEOUT_S: Final = 3600.0
_KUBERNETES: Final = "v1.37.2"


class BinariesMissing(Exception):
    """The control plane cannot be had here; the message says what is lacking."""


@dataclass(frozen=True, slots=True)
class Build:
    """Programs of one Go module."""

    module: str
    version: str
    packages: Mapping[str, str]
    """Program -> its main package, below the module."""
    go_version: str
    """The oldest Go that compiles it."""
    ldflags: str = "-s -w"
    replacements: str = ""
    """Pattern of modules that this one's go.mod replaces by folders, which `go install MODULE@VERSION` refuses, and
    which are published with the same number under v0."""


BUILDS: Final = (
    Build("go.etcd.io/etcd/server/v3", "v3.7.3", {"etcd": ""}, "1.26"),
    Build(
        "k8s.io/kubernetes",
        _KUBERNETES,
        {name: f"/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")},
        "1.26",
        # The API server tells this version to its clients; kubectl compares it with its own.
        f"-s -w -X k8s.io/component-base/version.gitVersion={_KUBERNETES}",
        r"^\s+(k8s\.io/[a-z-]+) => \./",
    ),
    Build("sigs.k8s.io/kwok", "v0.8.0", {"kwok": "/cmd/kwok"}, "1.26"),
)
PROGRAMS: Final = tuple(name for build in BUILDS for name in build.packages)


def find_binaries(report: Callable[[str], None] = lambda line: None) -> dict[str, Path]:
    """Program -> path, for each of PROGRAMS, building what is not there yet. Several callers at once build once.

    Raises BinariesMissing when something would have to be built and there is no Go for it, or when a build fails.
    """
    assets = _find_assets(os.environ)
    found = dict(assets)
    for build in BUILDS:
        if not set(build.packages) <= set(assets):
            folder = _built(build, report)
            found |= {name: folder / name for name in build.packages if name not in assets}
    return found


def _find_assets(environ: Mapping[str, str]) -> dict[str, Path]:
    folder = environ.get(ASSETS_VARIABLE)
    if not folder:
        return {}
    paths = {name: Path(folder) / name for name in PROGRAMS}
    return {name: path for name, path in paths.items() if os.access(path, os.X_OK)}


def _built(build: Build, report: Callable[[str], None]) -> Path:
    """The folder with the module's programs."""
    digest = hashlib.sha256(repr(build).encode()).hexdigest()[:12]
    name = build.module.removesuffix("/v3").rpartition("/")[2]
    folder = _cache_dir() / f"{name}-{build.version}-{digest}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _require_go(build)
            work = folder.with_name(f".{folder.name}.work")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            report(f"building {', '.join(build.packages)} {build.version}")
            _build(build, work)
            (work / "bin").rename(folder)
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "shoal" / "control-plane"


def _require_go(build: Build) -> None:
    go = shutil.which("go")
    if go is None:
        raise BinariesMissing(
            f"{', '.join(build.packages)}: not in ${ASSETS_VARIABLE}, and there is no Go here to build them with "
            f"(https://go.dev, {build.go_version} or newer)"
        )
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True, timeout=60).stdout
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    needed = [int(part) for part in build.go_version.split(".")]
    # Left to itself Go fetches the version that a module asks for.
    may_fetch = subprocess.run(
        [go, "env", "GOTOOLCHAIN"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    if numbers < needed and may_fetch.strip() == "local":
        raise BinariesMissing(f"{build.module} {build.version} needs Go {build.go_version}; this is {version.strip()}")


def _build(build: Build, work: Path) -> None:
    """Compiles in a module of our own that requires the real one, since `replace` counts in the main module only."""
    lines = ["module shoal.dev/control-plane", f"go {build.go_version}.0", f"require {build.module} {build.version}"]
    if build.replacements:
        listed = _go(["mod", "download", "-json", f"{build.module}@{build.version}"], work)
        match = re.search(r'"GoMod": "([^"]+)"', listed)
        assert match is not None, listed
        staged = re.findall(build.replacements, Path(match.group(1)).read_text(), re.MULTILINE)
        published = f"v0{build.version.removeprefix('v1')}"
        lines += [f"replace {module} => {module} {published}" for module in staged]
    (work / "go.mod").write_text("\n".join(lines) + "\n")
    (work / "bin").mkdir()
    for name, package in build.packages.items():
        target = f"{build.module}{package}"
        flags = ["-mod=mod", "-p=2", "-trimpath", f"-ldflags={build.ldflags}"]
        _go(["build", *flags, "-o", f"bin/{name}", target], work)


def _go(arguments: Sequence[str], folder: Path) -> str:
    """Runs Go at low priority: others may be working on this machine."""
    environ = os.environ | {"GOFLAGS": "-buildvcs=false"}
    command = ["nice", "go", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        raise BinariesMissing(f"{' '.join(command)} failed:\n{error.stderr[-2000:]}") from error
    return done.stdout
