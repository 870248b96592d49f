"""The programs of a Kubernetes control plane: those in KUBEBUILDER_ASSETS, the rest built from Go modules, once.

Builds go to `$XDG_CACHE_HOME/shoal/control-plane/` (or `~/.cache/...`), in a folder named after what is built and how.
The first takes some ten minutes on two cores; after that it is a look into the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ASSETS_VARIABLE: Final = "KUBEBUILDER_ASSETS"
_BUILD_TIMEOUT_S: Final = 3600.0
_KUBERNETES: Final = "v1.37.2"
_GO: Final = "1.26"
"""The oldest Go that compiles all of it."""

MODULES: Final[Mapping[str, str]] = {
    "k8s.io/kubernetes": _KUBERNETES,
    "go.etcd.io/etcd/server/v3": "v3.7.3",
    "sigs.k8s.io/kwok": "v0.8.0",
    "sigs.k8s.io/lws": "v0.9.0",
    "helm.sh/helm/v4": "v4.3.1",
}
PACKAGES: Final[Mapping[str, str]] = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok",
    "lws": "sigs.k8s.io/lws/cmd",
    "helm": "helm.sh/helm/v4/cmd/helm",
}
"""Program -> its main package."""
_FLAGS: Final = (
    "-mod=mod",
    "-p=2",
    "-trimpath",
    # The API server tells this version to its clients; kubectl compares it with its own.
    f"-ldflags=-s -w -X k8s.io/component-base/version.gitVersion={_KUBERNETES}",
    "-gcflags=all=-dwarf=false",  # 13% less to compute than leaving it to the linker to drop
)
_STAGED: Final = r"^\s+(k8s\.io/[a-z-]+) => \./"
"""Modules that Kubernetes replaces by folders of its own, and publishes with the same number under v0."""


class BinariesMissing(Exception):
    """The control plane cannot be had here; the message says what is lacking, and whether that is a failure."""

    def __init__(self, message: str, *, is_failure: bool) -> None:
        super().__init__(message)
        self.is_failure = is_failure
        """A build went wrong, which is not a reason to pass tests over; False: there is nothing to build with."""


def find_binaries(report: Callable[[str], None] = lambda line: None) -> dict[str, Path]:
    """Program -> path, for each of PACKAGES, building what is not there yet. Several callers at once build once.

    Raises BinariesMissing when something would have to be built and there is no Go for it, or when a build fails.
    """
    folder = os.environ.get(ASSETS_VARIABLE)
    given = {name: Path(folder) / name for name in PACKAGES} if folder else {}
    found = {name: path for name, path in given.items() if os.access(path, os.X_OK)}
    wanted = [name for name in PACKAGES if name not in found]
    if wanted:
        built = _built(wanted, report)
        found |= {name: built / name for name in wanted}
    return found


def cache_dir() -> Path:
    """Where builds are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "shoal" / "control-plane"


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path | None]:
    """Yields where to make a folder that is not there yet, for one caller at a time; None: it is there.

    What was made appears at once, or not at all when the block fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            yield None
            return
        work = folder.with_name(f".{folder.name}.work")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        work.rename(folder)


def run_go(arguments: Sequence[str], folder: Path) -> str:
    """What it prints. At low priority: others may be working on this machine. Raises BinariesMissing."""
    _require_go()
    # Without C the result needs no library of this machine, and no compiler for it.
    environ = os.environ | {"GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"}
    command = ["nice", "go", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        message = f"{' '.join(command)} failed:\n{(error.stderr or error.stdout)[-2000:]}"
        raise BinariesMissing(message, is_failure=True) from error
    return done.stdout


def _built(programs: Sequence[str], report: Callable[[str], None]) -> Path:
    """The folder with those programs."""
    recipe = repr((sorted(MODULES.items()), [PACKAGES[name] for name in programs], _FLAGS))
    folder = cache_dir() / f"programs-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    with making(folder) as work:
        if work is not None:
            _require_go()
            report(f"building {', '.join(programs)} of Kubernetes {_KUBERNETES}, from source, once")
            _build(programs, work)
    return folder


def _build(programs: Sequence[str], folder: Path) -> None:
    """Compiles all in one module of our own, which makes them share what they have in common; and `replace`, of which
    Kubernetes has many, counts in the main module only."""
    source = folder / "source"
    source.mkdir()
    listed = json.loads(run_go(["mod", "download", "-json", f"k8s.io/kubernetes@{_KUBERNETES}"], source))
    staged = re.findall(_STAGED, Path(listed["GoMod"]).read_text(), re.MULTILINE)
    published = f"v0{_KUBERNETES.removeprefix('v1')}"
    lines = ["module shoal.dev/control-plane", f"go {_GO}.0"]
    lines += [f"require {module} {version}" for module, version in MODULES.items()]
    lines += [f"replace {module} => {module} {published}" for module in staged]
    (source / "go.mod").write_text("\n".join(lines) + "\n")
    run_go(["build", *_FLAGS, "-o", f"{folder}/", *(PACKAGES[name] for name in programs)], source)
    for name in programs:
        (folder / _name_by_go(PACKAGES[name])).rename(folder / name)
    shutil.rmtree(source)


def _name_by_go(package: str) -> str:
    """What `go build` calls a program: the last part of its package that is not a version."""
    return re.sub(r"/v\d+$", "", package).rpartition("/")[2]


def _require_go() -> None:
    go = shutil.which("go")
    if go is None:
        raise BinariesMissing(
            f"no control plane: not all of {', '.join(PACKAGES)} are in ${ASSETS_VARIABLE}, and there is no Go here to "
            f"build them with (https://go.dev, {_GO} or newer)",
            is_failure=False,
        )
    version, toolchain = subprocess.run(
        [go, "env", "GOVERSION", "GOTOOLCHAIN"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    # Left to itself Go fetches the version that a module asks for.
    if numbers < [int(part) for part in _GO.split(".")] and toolchain == "local":
        raise BinariesMissing(f"the control plane needs Go {_GO} to build; this is {version}", is_failure=False)
